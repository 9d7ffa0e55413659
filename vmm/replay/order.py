"""In which order the kernel may have carried out calls that were under way at the same time."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from vmm.replay.ranges import Ranges
from vmm.replay.steps import Step
from vmm.scenario.operations import (
    GUEST_MEMFD,
    ClearDirtyLog,
    GetDirtyLog,
    SetUserMemoryRegion,
)
from vmm.scenario.slots import as_id_of

MOST_AT_ONCE = 4
"""How many calls are tried in every order at the most."""

_ALL_GPAS = (0, 1 << 65)


class Order:
    """Finds the calls whose order is open, and matters.

    Calls on different slots that have never been at the same gpas in the course of a trace have
    nothing to do with each other.
    """

    def __init__(self, every: Iterable[Step]) -> None:
        """Take all steps of the trace: they are looked at only if it matters."""
        self._every = every

    def rivals(self, steps: Sequence[Step], index: int) -> list[int]:
        """Return the indices of the calls that one may have overtaken, or been overtaken by.

        They are in order, the call itself among them; what was under way with the others in turn
        belongs to them. If they are too many to be tried, some may be missing.
        """
        group = [index]
        for member in group:  # It grows.
            group += [
                at
                for at, step in enumerate(steps)
                if _are_open(step, steps[member])
                and at not in group
                and any(self._meet(step, steps[each]) for each in group)
            ]
            if len(group) > MOST_AT_ONCE:
                break
        return sorted(group)

    def is_open(self, step: Step) -> bool:
        """Whether another call of the whole trace may have overtaken one."""
        return any(
            _are_open(each, step) and each != step and self._meet(each, step)
            for each in self._every
        )

    @cached_property
    def _gpas(self) -> dict[int, Ranges[bool]]:
        """Where each slot has been."""
        found: dict[int, Ranges[bool]] = {}
        for step in self._every:
            op = step.operation
            if isinstance(op, SetUserMemoryRegion) and op.memory_size:
                gpas = found.setdefault(op.slot, Ranges())
                gpas.put(op.guest_phys_addr, op.guest_phys_addr + op.memory_size, value=True)
        return found

    def _meet(self, one: Step, other: Step) -> bool:
        """Whether one call may change the answer to the other."""
        ours, theirs = _slot_of(one), _slot_of(other)
        if ours is None or theirs is None or ours == theirs:
            return True
        if as_id_of(ours) != as_id_of(theirs) or not {ours, theirs} <= self._gpas.keys():
            return False
        return any(
            any(self._gpas[theirs].within(begin, end))
            for begin, end, _ in self._gpas[ours].within(*_ALL_GPAS)
        )


def _are_open(one: Step, other: Step) -> bool:
    """Whether two calls were under way at the same time."""
    return one.line.begin < other.line.end and other.line.begin < one.line.end


def _slot_of(step: Step) -> int | None:
    """Return the slot that a call is about; None if it may have to do with any."""
    op = step.operation
    if isinstance(op, SetUserMemoryRegion) and op.flags & GUEST_MEMFD:
        return None
    return op.slot if isinstance(op, SetUserMemoryRegion | GetDirtyLog | ClearDirtyLog) else None


def is_possible(order: Sequence[Step]) -> bool:
    """Whether no call in an order ended before an earlier one in that order began."""
    return all(later.line.end >= earlier.line.begin for earlier, later in _pairs(order))


def _pairs(order: Sequence[Step]) -> Iterator[tuple[Step, Step]]:
    for at, earlier in enumerate(order):
        for later in order[at + 1 :]:
            yield earlier, later
