"""Minimises a difference: the fewest operations and the simplest values that still show it."""
