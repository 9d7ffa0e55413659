"""Calls as C programs see them: what each answers as an errno, and what has no such form."""

from vmm.scenario.history import (
    AnyOutcome,
    DirtyPages,
    Done,
    PreFaulted,
    Refused,
    RingPages,
    RingsReset,
)


class InexpressibleError(ValueError):
    """A step that has no form in a plain C program."""


def errno_of(outcome: AnyOutcome) -> int:
    """Return the errno that a call comes to; 0 is success."""
    match outcome:
        case Refused(number):
            return number
        case Done() | DirtyPages() | RingsReset() | PreFaulted() | RingPages():
            return 0
        case _:
            raise InexpressibleError(f"a call that comes to {type(outcome).__name__}")
