"""The reader of the kernel's own memslots while scenarios run; none unless `looked_at_by` sets it.

It is that of this process, and of the children that it starts meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from vmm.scenario.kernelslots import KernelSlots


class Looks(Protocol):
    """Reads what the kernel holds of one VM's memslots (see `vmm.whitebox.reader.Reader`)."""

    def generation(self, as_id: int) -> int | None:
        """Return the generation of an address space; None if it is not to be looked at now."""

    def slots(self, as_id: int, before: int, slot_id: int) -> KernelSlots | None:
        """Return what the kernel holds of it, most of a slot; None if that is too much."""


LookAt = Callable[[int], Looks]
"""Returns the reader of the newest VM of a process."""

_now: LookAt | None = None


@contextmanager
def looked_at_by(look_at: LookAt | None) -> Iterator[None]:
    """Have slots read by ``look_at``, or not at all, until the block ends."""
    global _now
    before, _now = _now, look_at
    try:
        yield
    finally:
        _now = before


def look_at() -> LookAt | None:
    """Return what reads slots; None if nothing does."""
    return _now
