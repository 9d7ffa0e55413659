"""What instructions do to memory, registers and flags, by the architecture's manuals.

Each effect says which bytes are read and written, in which order, and what registers and flags
hold afterwards (Intel SDM volume 2, AMD APM volume 3).

The memory operand is at [DI], or on the stack; a source is in BX, its high half in CX; the
accumulator is AX, its high half DX; a string instruction copies from [SI].
"""

from collections.abc import Callable
from typing import Protocol

from vmm.scenario.instruction_operation import Instruction

CF, PF, AF, ZF, SF, OF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11
ARITHMETIC = CF | PF | AF | ZF | SF | OF
"""The flags that are compared: all are 0 before an instruction."""


class Processor(Protocol):
    """What an instruction works on. Registers have the width of the mode."""

    op: Instruction
    ax: int
    bx: int
    cx: int
    dx: int
    sp: int
    bp: int
    si: int
    di: int
    flags: int
    undefined: int
    next_ip: int
    is_bp_known: bool

    def read(self, gpa: int, length: int) -> int:
        """Return ``length`` bytes of memory as a little-endian number."""

    def write(self, gpa: int, length: int, value: int) -> None:
        """Write the low ``length`` bytes of a number."""

    def write_anything(self, gpa: int, length: int, *, surely: bool = True) -> None:
        """Write bytes that the architecture leaves open; if not ``surely``, perhaps not at all."""

    def take(self, length: int) -> int:
        """Read ``length`` bytes from the port in DX."""

    def send(self, data: bytes) -> None:
        """Write to the port in DX."""

    def lose_track(self) -> None:
        """Note that the outcome is unknown."""


Effect = Callable[[Processor], None]

RESET_FLAGS = 0x2


def _mask(width: int) -> int:
    return (1 << 8 * width) - 1


def _result_flags(value: int, width: int) -> int:
    """Return SF, ZF and PF of a result."""
    sign = SF if value >> 8 * width - 1 & 1 else 0
    even = PF if (value & 0xFF).bit_count() % 2 == 0 else 0
    return sign | even | (0 if value else ZF)


def _added(one: int, other: int, width: int) -> tuple[int, int]:
    """Return a sum and its flags."""
    total = one + other
    value = total & _mask(width)
    carry = CF if total != value else 0
    half = AF if (one & 0xF) + (other & 0xF) > 0xF else 0
    overflow = OF if (one ^ value) & (other ^ value) & 1 << 8 * width - 1 else 0
    return value, _result_flags(value, width) | carry | half | overflow


def _compared(one: int, other: int, width: int) -> int:
    """Return the flags of ``one`` minus ``other``."""
    value = one - other & _mask(width)
    borrow = CF if one < other else 0
    half = AF if one & 0xF < other & 0xF else 0
    overflow = OF if (one ^ other) & (one ^ value) & 1 << 8 * width - 1 else 0
    return _result_flags(value, width) | borrow | half | overflow


def cmpxchg(cpu: Processor) -> None:
    """Compare and exchange: if they differ, it writes the old value back, so it always writes."""
    at, width = cpu.di, cpu.op.width
    old = cpu.read(at, width)
    accumulator = cpu.ax & _mask(width)
    cpu.flags = _compared(accumulator, old, width)
    cpu.write(at, width, cpu.bx if accumulator == old else old)
    cpu.ax = old


def cmpxchg_pair(cpu: Processor) -> None:
    """Like cmpxchg, on pairs of registers; ZF is the only flag that changes."""
    half, at = cpu.op.width // 2, cpu.di
    bits, mask = 8 * half, _mask(half)
    old = cpu.read(at, 2 * half)
    is_equal = old == (cpu.dx & mask) << bits | cpu.ax & mask
    new = (cpu.cx & mask) << bits | cpu.bx & mask
    cpu.write(at, 2 * half, new if is_equal else old)
    cpu.ax, cpu.dx = old & mask, old >> bits
    cpu.flags = ZF if is_equal else 0


def xadd(cpu: Processor) -> None:
    at, width = cpu.di, cpu.op.width
    old = cpu.read(at, width)
    value, cpu.flags = _added(old, cpu.bx & _mask(width), width)
    cpu.write(at, width, value)
    cpu.bx = old


def xchg(cpu: Processor) -> None:
    at, width = cpu.di, cpu.op.width
    old = cpu.read(at, width)
    cpu.write(at, width, cpu.bx)
    cpu.bx = old


def logic(of: Callable[[int, int], int]) -> Effect:
    def effect(cpu: Processor) -> None:
        width = cpu.op.width
        value = of(cpu.read(cpu.di, width), cpu.bx) & _mask(width)
        cpu.write(cpu.di, width, value)
        cpu.flags = _result_flags(value, width)
        cpu.undefined = AF

    return effect


def add(cpu: Processor) -> None:
    width = cpu.op.width
    value, cpu.flags = _added(cpu.read(cpu.di, width), cpu.bx & _mask(width), width)
    cpu.write(cpu.di, width, value)


def inc(cpu: Processor) -> None:
    width = cpu.op.width
    value, flags = _added(cpu.read(cpu.di, width), 1, width)
    cpu.write(cpu.di, width, value)
    cpu.flags = flags & ~CF


def invert(cpu: Processor) -> None:
    width = cpu.op.width
    cpu.write(cpu.di, width, ~cpu.read(cpu.di, width))


def bts(cpu: Processor) -> None:
    """Set the bit that the immediate names, modulo the width."""
    _set_bit(cpu, cpu.di, cpu.op.value & 0xFF)


def bit_offset(op: Instruction) -> int:
    """Return the signed place of a bit, counted from the memory operand on, of ``bts-register``.

    The value's low 16 bits say it: it is at most 4 KiB away.
    """
    return (op.value & 0xFFFF ^ 0x8000) - 0x8000


def bit_displacement(op: Instruction) -> int:
    """Return how many bytes lie between the memory operand and what ``bts-register`` accesses."""
    return bit_offset(op) // (8 * op.width) * op.width


def bts_register(cpu: Processor) -> None:
    """Set the bit that a register names, which may lie before or after the memory operand."""
    op = cpu.op
    at = cpu.di + bit_displacement(op) & _mask(8 if op.mode == "long" else 4)
    _set_bit(cpu, at, bit_offset(op))


def _set_bit(cpu: Processor, at: int, bit: int) -> None:
    """Set a bit of the operand at a gpa, modulo its width."""
    width = cpu.op.width
    old, bit = cpu.read(at, width), bit % (8 * width)
    cpu.write(at, width, old | 1 << bit)
    cpu.flags = CF if old >> bit & 1 else 0
    cpu.undefined = OF | SF | AF | PF


def load(cpu: Processor) -> None:
    cpu.bx = cpu.read(cpu.di, cpu.op.width)


def store(cpu: Processor) -> None:
    cpu.write(cpu.di, cpu.op.width, cpu.bx)


def descriptor_table(op: Instruction) -> tuple[int, int]:
    """Return base and limit of the table that sgdt or sidt stores; the base is canonical."""
    return op.value & (_mask(4) if op.mode == "real" else _mask(8) >> 17), op.compare & 0xFFFF


def load_pair(cpu: Processor) -> None:
    value = cpu.read(cpu.di, 16)
    cpu.bx, cpu.cx = value & _mask(8), value >> 64


def store_pair(cpu: Processor) -> None:
    cpu.write(cpu.di, 16, cpu.cx << 64 | cpu.bx)


def compare_register(cpu: Processor) -> None:
    width = cpu.op.width
    cpu.flags = _compared(cpu.read(cpu.di, width), cpu.bx & _mask(width), width)


def push(value: Callable[[Processor], int]) -> Effect:
    def effect(cpu: Processor) -> None:
        cpu.sp -= cpu.op.width
        cpu.write(cpu.sp, cpu.op.width, value(cpu))

    return effect


def enter(cpu: Processor) -> None:
    """Push BP and make a frame; the manuals differ on how much of BP a 16-bit operand changes."""
    push(lambda cpu: cpu.bp)(cpu)
    cpu.bp = cpu.sp
    cpu.is_bp_known = cpu.op.width != 2


def leave(cpu: Processor) -> None:
    width = cpu.op.width
    value = cpu.read(cpu.bp, width)
    cpu.sp = cpu.bp + width
    cpu.bp = cpu.bp & ~_mask(width) | value


def ret(cpu: Processor) -> None:
    """Pop the return address; the outcome is known only if that is the next instruction."""
    if cpu.read(cpu.sp, cpu.op.width) != cpu.next_ip:
        cpu.lose_track()
    cpu.sp += cpu.op.width


def pop(cpu: Processor) -> None:
    cpu.bx = cpu.read(cpu.sp, cpu.op.width)
    cpu.sp += cpu.op.width


def pusha(cpu: Processor) -> None:
    """Push all registers; SP as it was before."""
    for value in (cpu.ax, cpu.cx, cpu.dx, cpu.bx, cpu.sp, cpu.bp, cpu.si, cpu.di):
        cpu.sp -= cpu.op.width
        cpu.write(cpu.sp, cpu.op.width, value)


def popa(cpu: Processor) -> None:
    """Pop all registers; the slot of SP is skipped, not read."""
    width = cpu.op.width

    def popped(register: int) -> int:
        value = cpu.read(cpu.sp, width)
        cpu.sp += width
        return register & ~_mask(width) | value

    cpu.di, cpu.si, cpu.bp = popped(cpu.di), popped(cpu.si), popped(cpu.bp)
    cpu.sp += width
    cpu.bx, cpu.dx, cpu.cx, cpu.ax = (popped(each) for each in (cpu.bx, cpu.dx, cpu.cx, cpu.ax))


def push_memory(cpu: Processor) -> None:
    value = cpu.read(cpu.di, cpu.op.width)
    cpu.sp -= cpu.op.width
    cpu.write(cpu.sp, cpu.op.width, value)


def pop_memory(cpu: Processor) -> None:
    value = cpu.read(cpu.sp, cpu.op.width)
    cpu.sp += cpu.op.width
    cpu.write(cpu.di, cpu.op.width, value)


MXCSR_OFFSET, RESET_MXCSR = 24, 0x1F80
"""The offset of MXCSR in a saved state, and its value after a reset."""

_FNINIT_CONTROL = 0x37F
_FX_RESERVED, _FX_KEPT = 416, 464
"""Of the 512 bytes, reserved ones may or may not be written; the last are left to software."""


def fxsave(cpu: Processor) -> None:
    """Save the state after fninit; without CR4.OSFXSR vector registers may or may not be saved."""
    cpu.write(cpu.di, 5, _FNINIT_CONTROL)
    cpu.write_anything(cpu.di + 5, 155)
    cpu.write_anything(cpu.di + 160, _FX_KEPT - 160, surely=False)


def fxsave64(cpu: Processor) -> None:
    """Save the state after fninit, with XMM0 set; x87 pointers have 64 bits."""
    cpu.write(cpu.di, 5, _FNINIT_CONTROL)
    cpu.write_anything(cpu.di + 5, 155)
    cpu.write(cpu.di + 160, 16, cpu.cx << 64 | cpu.bx)
    cpu.write_anything(cpu.di + 176, _FX_RESERVED - 176)
    cpu.write_anything(cpu.di + _FX_RESERVED, _FX_KEPT - _FX_RESERVED, surely=False)


def fxrstor64(cpu: Processor) -> None:
    """Restore the state, and copy XMM0 to BX and CX; reserved bits of MXCSR raise an exception."""
    head = cpu.read(cpu.di, 160)
    vector = cpu.read(cpu.di + 160, 16)
    cpu.read(cpu.di + 176, 512 - 176)
    if head >> 8 * MXCSR_OFFSET + 16 & 0xFFFF:
        cpu.lose_track()
    cpu.bx, cpu.cx = vector & _mask(8), vector >> 64


def store_table(cpu: Processor) -> None:
    """Store the limit, and the base with the operand's width."""
    base, limit = descriptor_table(cpu.op)
    cpu.write(cpu.di, 2 + cpu.op.width, base << 16 | limit)


def way(before: int, after: int, mode: str) -> int:
    """Return how far a pointer moved; it may have wrapped."""
    bits = 64 if mode == "long" else 32
    half = 1 << bits - 1
    return ((after - before + half) & ((1 << bits) - 1)) - half


def _step(cpu: Processor) -> int:
    return -cpu.op.width if cpu.op.down else cpu.op.width


def move(cpu: Processor) -> None:
    width = cpu.op.width
    cpu.write(cpu.di, width, cpu.read(cpu.si, width))
    cpu.si += _step(cpu)
    cpu.di += _step(cpu)


def fill(cpu: Processor) -> None:
    cpu.write(cpu.di, cpu.op.width, cpu.ax)
    cpu.di += _step(cpu)


def load_element(cpu: Processor) -> None:
    cpu.ax = cpu.ax & ~_mask(cpu.op.width) | cpu.read(cpu.si, cpu.op.width)
    cpu.si += _step(cpu)


def take_in(cpu: Processor) -> None:
    cpu.write(cpu.di, cpu.op.width, cpu.take(cpu.op.width))
    cpu.di += _step(cpu)


def send_out(cpu: Processor) -> None:
    width = cpu.op.width
    cpu.send(cpu.read(cpu.si, width).to_bytes(width, "little"))
    cpu.si += _step(cpu)


def scan(cpu: Processor) -> None:
    width = cpu.op.width
    cpu.flags = _compared(cpu.ax & _mask(width), cpu.read(cpu.di, width), width)
    cpu.di += _step(cpu)


def compare(cpu: Processor) -> None:
    width = cpu.op.width
    cpu.flags = _compared(cpu.read(cpu.si, width), cpu.read(cpu.di, width), width)
    cpu.si += _step(cpu)
    cpu.di += _step(cpu)


def repeated(once: Effect, while_zf: bool | None = None) -> Effect:
    """Return an effect repeated CX times, or while ZF equals ``while_zf``."""

    def effect(cpu: Processor) -> None:
        while cpu.cx:
            once(cpu)
            cpu.cx -= 1
            if while_zf is not None and bool(cpu.flags & ZF) is not while_zf:
                return

    return effect
