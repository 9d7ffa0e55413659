"""Executes scenarios on a real kernel and records what happens. Judges nothing."""
