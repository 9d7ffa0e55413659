"""The host a run takes place on: its kernel log, its free memory, its child processes."""
