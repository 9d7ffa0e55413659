"""The slots that exist at a moment of a history, as data and as lines of text for reports."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vmm.model.gfntree import Trees
from vmm.model.model import Model
from vmm.model.regions import Memslot
from vmm.scenario.history import Done, Event, History
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    Hva,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
)
from vmm.scenario.words import counted, flags, hva, slot_number

_MOST = 1 << 20
"""How many slots the tree may have; the histories of the demo are short."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A memslot that exists. ``number`` is its 32-bit number: as_id << 16 | slot id.

    ``parent`` is the index of its parent in the kernel's tree by gfn, -1 at the root, and
    ``is_red`` the colour of its node (see `vmm.model.gfntree`).
    """

    number: int
    base_gfn: int
    npages: int
    userspace_addr: Hva
    flags: int
    parent: int
    is_red: bool

    @property
    def slot_id(self) -> int:
        """The lower 16 bits of the number."""
        return self.number & 0xFFFF


def slot_map_near(
    operation: AnyOperation, spaces: Iterable[Iterable[Memslot]], most: int
) -> Iterator[str]:
    """Yield a line for each slot of all address spaces, front first.

    Of more than ``most`` the lines are those of the slot that the operation names, and of those
    nearest to its gpa; how many are left out in between is a line, too.
    """
    every = [list(slots) for slots in spaces]
    slots = [slot for space in every for slot in space]
    lines = [line for space in every for line in slot_map(space)]
    near = sorted(range(len(lines)), key=lambda index: _distance(operation, slots[index]))
    last = -1
    for index in (*sorted(near[:most]), len(lines)):
        if skipped := index - last - 1:
            yield f"... {skipped} more"
        if index < len(lines):
            yield lines[index]
        last = index


def _distance(operation: AnyOperation, slot: Memslot) -> int:
    """Return how many pages are between a slot and what an operation is about."""
    if isinstance(operation, SetUserMemoryRegion | SetUserMemoryRegion2):
        if operation.slot == slot.number:
            return 0
        begin, size = operation.guest_phys_addr, operation.memory_size
    else:
        begin, size = getattr(operation, "gpa", -1), 1
    if begin < 0:
        return 0
    first, end = begin // PAGE_SIZE_BYTES, -(-(begin + size) // PAGE_SIZE_BYTES)
    return max(0, slot.base_gfn - end, first - slot.base_gfn - slot.npages)


def slot_map(slots: Iterable[Memslot]) -> list[str]:
    """Return a line for each slot, front (highest gfn) first."""
    return [
        f"[{index}] slot {slot_number(slot.number)}: gpa {slot.base_gfn * PAGE_SIZE_BYTES:#x}.."
        f"{(slot.base_gfn + slot.npages) * PAGE_SIZE_BYTES:#x} ({counted(slot.npages, 'page')}) "
        f"-> {hva(slot.userspace_addr)}, flags {flags(slot.flags)}"
        for index, slot in enumerate(slots)
    ]


def slots_after_each(history: History) -> Iterator[tuple[Event, tuple[Slot, ...]]]:
    """Yield each event with the slots after it, front (highest gfn) first.

    Ends with the first event that no rule allows, and the slots before it: the state after it is
    unknown.
    """
    model, trees = Model.of(history.header), Trees(_MOST)
    for event in history.events:
        followed = model.follow(event)
        if isinstance(event.operation, SetUserMemoryRegion) and isinstance(event.outcome, Done):
            trees.follow(event.operation)
        slots = [slot for space in model.spaces for slot in space]
        knots = trees.knots([(slot.number, slot.base_gfn) for slot in slots])
        yield (
            event,
            tuple(
                Slot(s.number, s.base_gfn, s.npages, s.userspace_addr, s.flags, parent, bool(red))
                for s, (parent, red) in zip(slots, knots, strict=True)
            ),
        )
        if not followed.fits:
            return
