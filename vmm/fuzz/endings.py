"""Runs that hung or died: their kind takes the place of a difference's identity."""

from vmm.verdict.identity import Identity

_ENDINGS = ("hung", "died")


def ended_badly(reason: str) -> bool:
    """Whether a reason says that a run hung or died."""
    return reason.startswith(_ENDINGS)


def ending(reason: str) -> Identity:
    """Return the identity of a run that hung or died: the first word of the reason."""
    return Identity(reason.partition(":")[0])


def is_ending(identity: Identity) -> bool:
    """Whether this is the identity of a run that hung or died."""
    return identity.operation in _ENDINGS
