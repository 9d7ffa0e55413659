"""Judges races: host threads and vCPUs that act at the same time."""
