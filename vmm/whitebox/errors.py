"""What may be missing."""


class CannotLookError(Exception):
    """The kernel's memory, or what explains it, is not to be had here: one line, with a remedy."""
