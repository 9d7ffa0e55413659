"""Holds a history against the model: verdicts, known issues, coverage, comparisons."""
