"""Runs that did not come to their end: their kind stands where that of a difference would."""

from vmm.verdict.identity import Identity

_ENDINGS = ("hung", "died")


def ended_badly(reason: str) -> bool:
    """Whether this is why a run hung or died."""
    return reason.startswith(_ENDINGS)


def ending(reason: str) -> Identity:
    """Return the kind of a run that hung or died: its first word."""
    return Identity(reason.partition(":")[0])


def is_ending(identity: Identity) -> bool:
    """Whether this is the kind of a run that hung or died."""
    return identity.operation in _ENDINGS
