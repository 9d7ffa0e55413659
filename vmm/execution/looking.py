"""The reader of the kernel's own memslots while scenarios run; none unless `looked_at_by` sets it.

It serves this process, and the children that it starts meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from vmm.scenario.kernelslots import KernelSlots


class SlotReader(Protocol):
    """Reads the kernel's memslots of one VM (see `vmm.whitebox.reader.Reader`)."""

    def generation(self, as_id: int) -> int | None:
        """Return the generation of an address space; None if it should not be read now."""

    def slots(self, as_id: int, before: int, slot_id: int) -> KernelSlots | None:
        """Return the kernel's slots, with the metadata of one; None if there are too many."""


LookAt = Callable[[int], SlotReader]
"""Returns the reader of the newest VM of a process."""

_now: LookAt | None = None


@contextmanager
def looked_at_by(look_at: LookAt | None) -> Iterator[None]:
    """Have ``look_at`` read slots until the block ends; None reads none."""
    global _now
    before, _now = _now, look_at
    try:
        yield
    finally:
        _now = before


def look_at() -> LookAt | None:
    """Return the current reader; None if there is none."""
    return _now
