"""Which slots there are before an operation, told from a scenario's operations alone."""

from vmm.scenario.operations import (
    READONLY,
    NewVm,
    Scenario,
    SetUserMemoryRegion,
    pages_of,
)
from vmm.scenario.slots import as_id_of


def is_held(scenario: Scenario, origin: int, gpa: int, length: int, write: bool) -> bool:
    """Whether slots hold all these bytes, and may be written, before the operation ``origin``."""
    slots: dict[int, SetUserMemoryRegion] = {}
    for op in scenario.operations[:origin]:
        if isinstance(op, NewVm):
            slots.clear()
        elif isinstance(op, SetUserMemoryRegion):
            change(slots, op)
    held = [gfns_of(call) for call in slots.values() if not (write and call.flags & READONLY)]
    pages = range(pages_of(gpa), pages_of(gpa + length - 1) + 1)
    return all(any(page in gfns for gfns in held) for page in pages)


def change(slots: dict[int, SetUserMemoryRegion], op: SetUserMemoryRegion) -> bool:
    """Make a call's change; return whether there is one, by the slots that are there alone."""
    if not op.memory_size:
        return slots.pop(op.slot, None) is not None
    old = slots.get(op.slot)
    if old is not None and _stays(old) != _stays(op):
        return False
    others = (each for slot, each in slots.items() if slot != op.slot)
    if any(
        as_id_of(each.slot) == as_id_of(op.slot) and overlap(gfns_of(each), gfns_of(op))
        for each in others
    ):
        return False
    slots[op.slot] = op
    return True


def _stays(op: SetUserMemoryRegion) -> tuple[object, ...]:
    """Return what no call changes of a slot that is there."""
    return op.memory_size, op.userspace_addr, op.flags & READONLY


def gfns_of(op: SetUserMemoryRegion) -> range:
    """Return the gfns of a slot as a call makes it."""
    first = pages_of(op.guest_phys_addr)
    return range(first, first + pages_of(op.memory_size))


def overlap(one: range, other: range) -> bool:
    """Whether two ranges have a gfn in common."""
    return one.start < other.stop and other.start < one.stop
