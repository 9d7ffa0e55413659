"""The rules that allow an outcome, each with its source."""
