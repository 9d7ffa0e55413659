"""Measures what memslot operations cost on this kernel, through the library and in C."""
