"""Touches for the guests' mailbox, with named fields."""

from typing import NamedTuple

from guests.image import Access


class Touch(NamedTuple):
    """One access at ``gpa``. A write stores the low bytes of ``value``."""

    gpa: int
    code: Access
    value: int = 0
