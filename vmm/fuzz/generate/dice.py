"""Pseudo-random choices that are the same on every machine and with every Python.

Of ``random.Random``, only ``random()`` is guaranteed to give the same numbers in every version;
everything here is made from it, which is also fastest.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_MIX = 0x9E3779B97F4A7C15
_SEED_BITS = 64


class Dice:
    """A stream of choices that depends only on the seed."""

    __slots__ = ("random",)

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items, each equally likely."""
        return items[int(self.random() * len(items))]

    def below(self, end: int) -> int:
        """Return a number from 0 to ``end - 1``; ``end`` is at most 2^32."""
        return int(self.random() * end)

    def between(self, first: int, last: int) -> int:
        """Return a number from ``first`` to ``last``, both included."""
        return first + int(self.random() * (last - first + 1))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.random() < probability


def seed_of(run_seed: int, number: int) -> int:
    """Return the seed of the scenario ``number`` of a run: 64 bits, different for each."""
    return ((run_seed * _MIX) ^ (number * 0xD1B54A32D192ED03)) & ((1 << _SEED_BITS) - 1)
