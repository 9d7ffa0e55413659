"""The slots that exist at a moment of a history, as data for reports and as lines of text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vmm.model.model import Model
from vmm.model.regions import Memslot
from vmm.scenario.history import Event, History
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    Hva,
)
from vmm.scenario.words import flags, hva, slot_number


@dataclass(frozen=True, slots=True)
class Slot:
    """A memslot that exists. ``number`` is its 32-bit number: as_id above, slot id below."""

    number: int
    base_gfn: int
    npages: int
    userspace_addr: Hva
    flags: int

    @property
    def slot_id(self) -> int:
        """The lower half of the number."""
        return self.number & 0xFFFF


def slot_map(slots: Iterable[Memslot]) -> list[str]:
    """Return a line for each slot, front (highest gfn) first."""
    return [
        f"[{index}] slot {slot_number(slot.number)}: gpa {slot.base_gfn * PAGE_SIZE_BYTES:#x}.."
        f"{(slot.base_gfn + slot.npages) * PAGE_SIZE_BYTES:#x} ({slot.npages} pages) "
        f"-> {hva(slot.userspace_addr)}, flags {flags(slot.flags)}"
        for index, slot in enumerate(slots)
    ]


def slots_after_each(history: History) -> Iterator[tuple[Event, tuple[Slot, ...]]]:
    """Yield each event with the slots after it, front (highest gfn) first.

    The first event that no rule allows comes last, with the slots before it: what exists after it
    is not known.
    """
    model = Model.of(history.header)
    for event in history.events:
        followed = model.follow(event)
        slots = (slot for space in model.spaces for slot in space)
        yield (
            event,
            tuple(
                Slot(slot.number, slot.base_gfn, slot.npages, slot.userspace_addr, slot.flags)
                for slot in slots
            ),
        )
        if not followed.fits:
            return
