"""Touches for the guests' mailbox, with names in place of positions."""

from typing import NamedTuple

from guests.image import Access


class Touch(NamedTuple):
    """One access at ``gpa``. ``value`` is what a write stores: its low bytes."""

    gpa: int
    code: Access
    value: int = 0
