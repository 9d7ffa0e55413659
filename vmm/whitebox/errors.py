"""The error of the white box."""


class CannotLookError(Exception):
    """The kernel's memory, or its layout, is not available: one line, with a remedy."""
