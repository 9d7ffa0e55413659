"""States over time: which states an object may have had while other threads changed it."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Track(Generic[T]):
    """The states of one object. The intervals of changes never overlap.

    Each change takes effect at an unknown moment of its interval, from invocation to response.
    Moments count upward; no two invocations or responses share one.
    """

    def __init__(self, initial: T) -> None:
        self._states: list[T] = [initial]
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._passing: list[tuple[T, ...]] = []

    @property
    def last(self) -> T:
        """The state after all changes so far."""
        return self._states[-1]

    @property
    def first(self) -> T:
        """The state before all changes."""
        return self._states[0]

    @property
    def changes(self) -> int:
        """The number of changes so far."""
        return len(self._begins)

    @property
    def passing(self) -> tuple[T, ...]:
        """The intermediate states that the last change may pass through."""
        return self._passing[-1] if self._passing else ()

    def change(self, begin: int, end: int, state: T, passing: Iterable[T] = ()) -> None:
        """Note a change; ``passing`` are states that it may pass through."""
        self._begins.append(begin)
        self._ends.append(end)
        self._states.append(state)
        self._passing.append(tuple(passing))

    def within(self, begin: int, end: int) -> list[T]:
        """Return every state that may have held at some moment from ``begin`` to ``end``, once."""
        index = bisect_left(self._ends, begin)
        states = [self._states[index]]
        while index < len(self._begins) and self._begins[index] < end:
            states += self._passing[index]
            states.append(self._states[index + 1])
            index += 1
        return list(dict.fromkeys(states))
