"""Conditions of the known issues of interrupts and far calls."""

from collections.abc import Iterator

from vmm.scenario.operations import (
    Scenario,
    Start,
    pages_of,
)
from vmm.scenario.programs import (
    FAR_CALL,
    FAR_CALL_FRAME_BYTES,
    INTERRUPT,
    LONG_FRAME_BYTES,
    LONG_GATE_BYTES,
    REAL_FRAME_BYTES,
    REAL_GATE_BYTES,
    VECTOR,
)
from vmm.verdict.slotsbefore import Slots, slots_before


def interrupts_without_a_table(scenario: Scenario) -> Iterator[int]:
    """Yield each start in real mode whose interrupt table may lie outside memory."""
    if not _raises(scenario):
        return
    for origin, op, slots in _with_real_tables(scenario):
        gate = (op.interrupts or 0) + VECTOR * REAL_GATE_BYTES
        if not slots.hold(gate, REAL_GATE_BYTES, write=False):
            yield origin


def interrupts_pushed_outside(scenario: Scenario) -> Iterator[int]:
    """Yield each start in real mode whose interrupt may be pushed to what is no writable memory."""
    if _raises(scenario):
        yield from _pushed_outside(scenario, REAL_FRAME_BYTES)


def far_calls_pushed_outside(scenario: Scenario) -> Iterator[int]:
    """Yield each start in real mode whose far call may be pushed there."""
    if _is_written(scenario, FAR_CALL):
        yield from _pushed_outside(scenario, FAR_CALL_FRAME_BYTES)


def _pushed_outside(scenario: Scenario, frame_bytes: int) -> Iterator[int]:
    """Yield each start in real mode whose stack frame is not all in writable memory."""
    for origin, op, slots in _with_real_tables(scenario):
        if not slots.hold(op.stack - frame_bytes, frame_bytes, write=True):
            yield origin


def _with_real_tables(scenario: Scenario) -> Iterator[tuple[int, Start, Slots]]:
    """Yield each start in real mode with an interrupt table, and the slots before it."""
    for origin, (op, slots) in enumerate(slots_before(scenario)):
        if isinstance(op, Start) and op.interrupts is not None and op.tables is None:
            yield origin, op, slots


def deliveries_at_cached_mmio(scenario: Scenario) -> Iterator[int]:
    """Yield each start whose interrupt goes through a page that had no slot at an earlier one.

    Where a guest has page tables, it is not known here which pages have a slot: all may lack one.
    """
    if not _raises(scenario):
        return
    missed: set[int] = set()
    for origin, (op, slots) in enumerate(slots_before(scenario)):
        if isinstance(op, Start) and op.interrupts is not None:
            pages = _delivery_pages(op)
            if pages & missed:
                yield origin
            missed.update(page for page in pages if op.tables is not None or not slots.holds(page))


def _delivery_pages(op: Start) -> set[int]:
    """Return the pages of an interrupt's table entry and stack frame, by guest address."""
    assert op.interrupts is not None
    size = REAL_GATE_BYTES if op.tables is None else LONG_GATE_BYTES
    frame = REAL_FRAME_BYTES if op.tables is None else LONG_FRAME_BYTES
    gate = op.interrupts + VECTOR * size
    return {pages_of(at) for at in (gate, op.stack - frame, op.stack - 1)}


def _raises(scenario: Scenario) -> bool:
    """Whether the program that raises an interrupt is written: others return, or call far."""
    return _is_written(scenario, INTERRUPT[:2])


def _is_written(scenario: Scenario, begin: bytes) -> bool:
    """Whether some word is written that begins as a program does."""
    wanted, mask = int.from_bytes(begin, "little"), (1 << 8 * len(begin)) - 1
    return any(getattr(op, "value", 0) & mask == wanted for op in scenario.operations)
