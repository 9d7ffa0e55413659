"""Chooses the gpa of a guest that names none: one that no operation of its scenario uses.

The choice depends on the scenario alone. It is the usual gpa wherever that is free.
"""

from collections.abc import Iterable, Iterator

import msgspec

from vmm.scenario.instructions import accessed
from vmm.scenario.operations import (
    CHURN_GFNS,
    GUEST_SIZE_BYTES,
    NO_SLOT,
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    SOMEWHERE,
    AnyOperation,
    Churn,
    Execute,
    Guest,
    Instruction,
    PreFaultMemory,
    Race,
    Scenario,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    Sweep,
    Touch,
    access_end,
    guest_count,
    pages_of,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.slots import MAX_PAGES

USUAL_GPA = SOMEWHERE.gpa

Range = tuple[int, int]
"""The first gpa of a range, and the one after its last."""

KERNELS: tuple[Range, ...] = ((0xFEC0_0000, 0xFEF0_0000), (0xFFFB_C000, 0xFFFC_0000))
"""The gpas of the interrupt controllers, and those of internal slots that a kernel may make."""

TSS_BYTES = 4 * PAGE_SIZE_BYTES
"""What KVM_SET_TSS_ADDR uses: three pages, and one to spare."""

_NO_ROOM = (
    "$.guest.gpa: the operations leave no {} KiB below 4 GiB free for the guest; name a place, "
    "which an operation's region may then find taken"
)


def placed(scenario: Scenario) -> Scenario:
    """Return a scenario whose guest is out of the way, unless it names its guest's place.

    Raises ScenarioError where there is no room.
    """
    return with_room(scenario) if scenario.guest is SOMEWHERE else scenario


def with_room(scenario: Scenario) -> Scenario:
    """Return a scenario whose guest is out of the way. Raises ScenarioError if there is no room."""
    if scenario.guest.slot == NO_SLOT:
        return scenario
    guests = guest_count(scenario)
    gpa = free_gpa(ranges_of(scenario.operations), guests)
    if gpa is None:
        raise ScenarioError(_NO_ROOM.format(guests * GUEST_SIZE_BYTES >> 10))
    if gpa == scenario.guest.gpa:
        return scenario
    return msgspec.structs.replace(scenario, guest=Guest(scenario.guest.slot, gpa))


def free_gpa(taken: Iterable[Range], guests: int = 1) -> int | None:
    """Return a gpa for the first of ``guests`` guests; None if there is no room.

    This is the usual one if all of it is free, else the highest below 4 GiB with a free page on
    both sides, else the highest. The other guests live below the first, one after the other.
    """
    ranges = sorted(
        (each for each in (*taken, *KERNELS) if each[0] < each[1]),
        key=lambda each: each[1],
        reverse=True,
    )
    below = (guests - 1) * GUEST_SIZE_BYTES
    begin, end = USUAL_GPA - below, USUAL_GPA + GUEST_SIZE_BYTES
    if not any(start < end and begin < stop for start, stop in ranges):
        return USUAL_GPA
    for margin in (PAGE_SIZE_BYTES, 0):
        gpa = _highest(ranges, guests * GUEST_SIZE_BYTES, margin)
        if gpa >= 0:
            return gpa + below
    return None


def _highest(ranges: list[Range], size: int, margin: int) -> int:
    """Return the highest gpa below 4 GiB with ``size`` free bytes; negative if there is none."""
    gpa = REAL_MODE_END - size
    for start, end in ranges:
        if start - margin < gpa + size and gpa < end + margin:
            gpa = (start - margin - size) & -GUEST_SIZE_BYTES
    return gpa


def ranges_of(operations: Iterable[AnyOperation]) -> Iterator[Range]:
    """Yield the gpas that operations which could succeed name, in any address space."""
    for op in operations:
        match op:
            case SetUserMemoryRegion():
                yield from _possible(op.guest_phys_addr, op.memory_size)
            case Touch() | Sweep() | Execute():
                yield op.gpa, access_end(op)
            case Instruction():
                yield from ((gpa, gpa + length) for gpa, length in accessed(op))
            case PreFaultMemory():
                yield from _possible(op.gpa, op.size)
            case SetMemoryAttributes():
                yield from _possible(op.address, op.size)
            case SetTssAddr():
                yield op.gpa, op.gpa + TSS_BYTES
            case SetIdentityMapAddr():
                yield op.gpa, op.gpa + PAGE_SIZE_BYTES
            case Churn():
                first, count = CHURN_GFNS
                yield first * PAGE_SIZE_BYTES, (first + count) * PAGE_SIZE_BYTES
            case Race():
                for host in op.hosts:
                    yield from ranges_of(host.operations)
                for guest in op.guests:
                    yield from ranges_of(guest.program)
            case _:
                pass


def _possible(gpa: int, size: int) -> Iterator[Range]:
    """Yield a range unless every kernel refuses it, or it is longer than any slot."""
    if not (gpa | size) % PAGE_SIZE_BYTES and pages_of(size) <= MAX_PAGES and gpa + size <= 1 << 64:
        yield gpa, gpa + size
