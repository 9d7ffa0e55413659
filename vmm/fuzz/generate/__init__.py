"""Random scenarios: `scenarios` makes one of a seed, and the other files have a subject each."""
