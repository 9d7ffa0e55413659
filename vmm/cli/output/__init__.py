"""Where commands print and write: terminals, pipes and files that may fail at any time."""
