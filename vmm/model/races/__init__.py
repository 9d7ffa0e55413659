"""Races: threads of the host and vCPUs that act at the same time, and the judging of it."""
