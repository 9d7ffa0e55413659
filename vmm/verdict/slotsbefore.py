"""The slots before each operation of a scenario, assuming that no limit of a kernel refuses one."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from vmm.model.array import Change, MemslotArray
from vmm.model.regions import refusal_by_argument
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    READONLY,
    AnyOperation,
    NewVm,
    Scenario,
    SetUserMemoryRegion,
    pages_of,
)
from vmm.scenario.slots import MAX_SLOTS, as_id_of, id_of

_GENEROUS = Features(nr_memslots=MAX_SLOTS, address_spaces=2, user_memory2=True, guest_memfd=True)
"""A kernel that refuses no arguments but those that every kernel refuses."""

_FEWEST_GFNS = 1 << (36 - 12)
"""The gfns of a processor with the fewest bits of physical address: some kernels refuse further
ones, so that a slot there may not exist."""


@dataclass(frozen=True, slots=True)
class _Entry:
    slot_id: int
    base_gfn: int
    npages: int
    call: SetUserMemoryRegion


class Slots:
    """The slots of a VM after a series of calls, assuming that no limit of a kernel refuses one."""

    def __init__(self) -> None:
        self._spaces: defaultdict[int, MemslotArray[_Entry]] = defaultdict(MemslotArray)

    def holds(self, gfn: int, write: bool = False) -> bool:
        """Whether a slot of any address space holds a gfn, and is writable if ``write``."""
        found = (space.find(gfn) for space in self._spaces.values())
        return any(e is not None and not (write and e.call.flags & READONLY) for e in found)

    def hold(self, gpa: int, length: int, write: bool) -> bool:
        """Whether slots hold all these bytes, and are writable if ``write``."""
        pages = range(pages_of(gpa), pages_of(gpa + length - 1) + 1)
        return all(self.holds(page, write) for page in pages)

    def change(self, op: SetUserMemoryRegion) -> Change | None:
        """Apply a call; return how it changes the slots, None if it is refused.

        Only the call and the other slots decide. Setting the same values counts as a change of
        flags.
        """
        space, number = self._spaces[as_id_of(op.slot)], id_of(op.slot)
        old = space.get(number)
        if refusal_by_argument(op, _GENEROUS) or (not op.memory_size and old is None):
            return None
        entry = _Entry(number, pages_of(op.guest_phys_addr), pages_of(op.memory_size), op)
        if not op.memory_size:
            space.delete(number)
            return Change.DELETE
        if old is not None and _stays(old.call) != _stays(op):
            if old.base_gfn + old.npages <= _FEWEST_GFNS:
                return None
            space.delete(number)
            old = None
        if space.overlapping(entry.base_gfn, entry.npages, besides=number) is not None:
            return None
        if old is None:
            change = Change.CREATE
        else:
            is_moved = old.base_gfn != entry.base_gfn
            change = Change.MOVE if is_moved else Change.FLAGS_ONLY
        space.update(entry, change)
        return change


def slots_before(scenario: Scenario) -> Iterator[tuple[AnyOperation, Slots]]:
    """Yield each operation, and the slots before it, which the next one changes."""
    slots = Slots()
    for op in scenario.operations:
        yield op, slots
        if isinstance(op, NewVm):
            slots = Slots()
        elif isinstance(op, SetUserMemoryRegion):
            slots.change(op)


def _stays(op: SetUserMemoryRegion) -> tuple[object, ...]:
    """Return what no call can change in an existing slot."""
    return op.memory_size, op.userspace_addr, op.flags & READONLY
