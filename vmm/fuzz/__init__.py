"""Random scenarios: made, run, judged, minimised, and turned into a C program."""
