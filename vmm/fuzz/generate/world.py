"""What a generator remembers of the slots that its scenario makes: a sketch, not a model.

It guesses which calls succeed, so that later operations aim at slots that exist, and at former
ones. A wrong guess only costs aim.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from vmm.fuzz.generate.pools import GUEST
from vmm.scenario.operations import (
    GUEST_MEMFD,
    GUEST_SIZE_BYTES,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    Place,
    SetUserMemoryRegion,
    pages_of,
)
from vmm.scenario.slots import MAX_PAGES, as_id_of, id_of

_FORMER_LIMIT = 48
_FLAGS = LOG_DIRTY_PAGES | READONLY | GUEST_MEMFD


@dataclass(slots=True)
class World:
    """The slots that probably exist, by slot number, and gpas where memory used to be.

    ``left`` is the slot that was deleted or moved last, as it was before.
    """

    last_gfn: int
    nr_memslots: int = 1 << 16
    spaces: int = 1 << 16
    slots: dict[int, SetUserMemoryRegion] = field(default_factory=dict)
    former: list[int] = field(default_factory=list)
    left: SetUserMemoryRegion | None = None

    def clear(self) -> None:
        """Forget all slots: their gpas are former ones now."""
        for slot in self.slots.values():
            self._leave(slot)
        self.slots.clear()

    def apply(self, op: SetUserMemoryRegion) -> None:
        """Apply a call that may succeed."""
        if op.caller != "owner" or op.argument != "readable" or not self._is_taken(op):
            return  # It fails, and later calls must not be derived from it.
        if op.fail_nth:
            op = msgspec.structs.replace(op, fail_nth=0)
        old = self.slots.get(op.slot)
        if op.memory_size == 0:
            if old is not None:
                del self.slots[op.slot]
                self._leave(old)
        elif self._fits(op) and (old is None or _may_become(old, op)):
            self.slots[op.slot] = op
            if old is not None and old.guest_phys_addr != op.guest_phys_addr:
                self._leave(old)

    def slot_at(self, gpa: int, as_id: int) -> SetUserMemoryRegion | None:
        """Return the slot that probably holds a gpa of an address space."""
        for number, slot in self.slots.items():
            start = slot.guest_phys_addr
            if start <= gpa < start + slot.memory_size and as_id_of(number) == as_id:
                return slot
        return None

    def memory_at(self, gpa: int, as_id: int) -> Place | None:
        """Return the host memory that probably shows at a gpa, if a mapping is named for it."""
        slot = self.slot_at(gpa, as_id)
        if slot is None or not isinstance(slot.userspace_addr, Place):
            return None
        hva = slot.userspace_addr
        return Place(hva.mapping, hva.offset + gpa - slot.guest_phys_addr)

    def pages(self) -> Iterator[int]:
        """Yield the first and last page of every slot, and the page after it."""
        for slot in self.slots.values():
            end = slot.guest_phys_addr + slot.memory_size
            yield slot.guest_phys_addr
            yield end - PAGE_SIZE_BYTES
            yield end

    def _is_taken(self, op: SetUserMemoryRegion) -> bool:
        """Whether slot and addresses are such as a kernel takes, for a deletion, too."""
        hva = op.userspace_addr
        offset = hva.offset if isinstance(hva, Place) else hva
        is_aligned = not (op.guest_phys_addr | offset) % PAGE_SIZE_BYTES
        return is_aligned and id_of(op.slot) < self.nr_memslots and as_id_of(op.slot) < self.spaces

    def _fits(self, op: SetUserMemoryRegion) -> bool:
        start, end = op.guest_phys_addr, op.guest_phys_addr + op.memory_size
        if (start | op.memory_size) % PAGE_SIZE_BYTES or end // PAGE_SIZE_BYTES > self.last_gfn + 1:
            return False
        if pages_of(op.memory_size) > MAX_PAGES or op.flags & ~_FLAGS:
            return False
        if start < GUEST.gpa + GUEST_SIZE_BYTES and GUEST.gpa < end:
            return False
        for number, other in self.slots.items():  # A generator expression takes twice as long.
            place = other.guest_phys_addr
            overlaps = place < end and start < place + other.memory_size
            if overlaps and number != op.slot and as_id_of(number) == as_id_of(op.slot):
                return False
        return True

    def _leave(self, slot: SetUserMemoryRegion) -> None:
        last = slot.guest_phys_addr + slot.memory_size - PAGE_SIZE_BYTES
        self.former += (slot.guest_phys_addr, last)
        del self.former[:-_FORMER_LIMIT]
        self.left = slot


def _may_become(old: SetUserMemoryRegion, new: SetUserMemoryRegion) -> bool:
    fixed = READONLY | GUEST_MEMFD
    return (
        not old.flags & GUEST_MEMFD
        and old.memory_size == new.memory_size
        and old.userspace_addr == new.userspace_addr
        and not (old.flags ^ new.flags) & fixed
    )
