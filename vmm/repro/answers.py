"""The outcome of a call as a C program sees it: an errno."""

from vmm.scenario.history import (
    AnyOutcome,
    DirtyPages,
    Done,
    Inspected,
    PreFaulted,
    Refused,
    RingPages,
    RingsReset,
)


class InexpressibleError(ValueError):
    """A step that a plain C program cannot express."""


def errno_of(outcome: AnyOutcome) -> int:
    """Return the errno of an outcome; 0 is success. Raises InexpressibleError."""
    match outcome:
        case Refused(number):
            return number
        case Done() | DirtyPages() | RingsReset() | PreFaulted() | RingPages() | Inspected():
            return 0
        case _:
            raise InexpressibleError(f"a call that comes to {type(outcome).__name__}")
