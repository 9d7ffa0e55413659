"""Random scenarios: generated, run, judged, minimised, and turned into a C program."""
