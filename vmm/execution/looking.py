"""Who looks into the kernel while scenarios run: nobody, unless `looked_at_by` says so.

It holds for this process and for the children that it starts meanwhile.
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
    """Let somebody look, or nobody, until the block ends."""
    global _now
    before, _now = _now, look_at
    try:
        yield
    finally:
        _now = before


def look_at() -> LookAt | None:
    """Return who looks; None if nobody does."""
    return _now
