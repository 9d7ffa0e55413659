"""What decoding JSON raises for the bytes of a stranger's file."""

import msgspec

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""For an ``except``: no JSON or no such fields, no UTF-8, nested too deep."""
