"""Boots a kernel in an emulated or nested machine, and runs one of our commands in it."""
