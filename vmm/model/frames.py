"""What interrupts and far calls push, lowest address first."""

from vmm.scenario.history import Mmio
from vmm.scenario.operations import Start
from vmm.scenario.programs import (
    CODE_SELECTOR,
    FAR_CALL_BYTES,
    FLAGS,
    INTERRUPT_BYTES,
    LONG_FAR_CALL_BYTES,
    STACK_SELECTOR,
)

_SEGMENT_BYTES = 1 << 16
_PUSHED_BYTES = 2


def interrupt_frame(op: Start) -> bytes:
    """Return what an interrupt pushes."""
    after = op.address + INTERRUPT_BYTES
    if op.tables is None:
        words = (after % _SEGMENT_BYTES, _code_segment(op), FLAGS)
        return b"".join(word.to_bytes(2, "little") for word in words)
    quads = (after, CODE_SELECTOR, FLAGS, op.stack, STACK_SELECTOR)
    return b"".join(quad.to_bytes(8, "little") for quad in quads)


def call_frame(op: Start) -> bytes:
    """Return what a far call pushes: in 64-bit mode two words of 32 bits."""
    if op.tables is None:
        after = (op.address + FAR_CALL_BYTES) % _SEGMENT_BYTES
        return after.to_bytes(2, "little") + _code_segment(op).to_bytes(2, "little")
    after = op.address + LONG_FAR_CALL_BYTES
    return after.to_bytes(4, "little") + CODE_SELECTOR.to_bytes(4, "little")


def pushes(gpa: int, frame: bytes) -> tuple[Mmio, ...]:
    """Return the exits of pushing a real-mode frame at a gpa, highest address first."""
    places = reversed(range(0, len(frame), _PUSHED_BYTES))
    return tuple(Mmio(gpa + place, True, frame[place : place + _PUSHED_BYTES]) for place in places)


def _code_segment(op: Start) -> int:
    """Return what CS holds in real mode."""
    return (op.address & -_SEGMENT_BYTES) >> 4 & 0xFFFF
