"""The host of a run: kernel log, free memory, child processes."""
