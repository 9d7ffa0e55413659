"""Minimises a difference to the fewest operations and the simplest values that still show it."""
