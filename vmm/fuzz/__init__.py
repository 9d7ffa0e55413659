"""Random scenarios: made, run, judged, shrunk, and turned into a reproducer."""
