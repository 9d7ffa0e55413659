"""Reads the kernel's own memslots while a scenario runs."""
