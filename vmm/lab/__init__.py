"""Boots a kernel in an emulated or nested machine, and runs a command of ours in it."""
