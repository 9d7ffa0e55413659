"""The instructions that a guest can be made to execute: one row each.

A row says how an instruction is encoded and what it does. The latter is the architecture's word
(Intel SDM volume 2, AMD APM volume 3): which bytes it reads and writes, in which order, and what
registers and flags are afterwards. What an access comes to in a slot, in a READONLY slot or in a
hole is no matter of this table: that is the model's.

Operands: the memory is at [DI], or is the stack below SP; a source is in BX, its high half in CX;
the accumulator is AX, its high half DX; a string instruction copies from [SI].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from vmm.scenario.instruction_operation import Instruction, Width

CODE_OFFSET = 0x8000
"""Where in the guest's slot the instruction stands, if nothing comes before it."""

CF, PF, AF, ZF, SF, OF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11
ARITHMETIC = CF | PF | AF | ZF | SF | OF
"""The flags that are looked at: all are 0 before an instruction."""

MAX_STRING_BYTES = 0x4000
"""A string instruction goes over so many bytes at most."""

_REAL_MODE_END = 1 << 32

Mode = Literal["real", "long"]


class Processor(Protocol):
    """What an instruction works on. Registers are as wide as the mode has them."""

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

    def read(self, gpa: int, length: int) -> int:
        """Return so many bytes of memory as a number, the first one lowest."""

    def write(self, gpa: int, length: int, value: int) -> None:
        """Write the low ``length`` bytes of a number."""


Effect = Callable[[Processor], None]


@dataclass(frozen=True, slots=True)
class Row:
    """An instruction: how it is encoded, and its ``effect``.

    ``real`` and ``long`` are the widths that its operand may have in each mode. The ``opcode``
    follows the prefixes; where there is a form for bytes the lowest bit says that the operand is
    wider. ``register`` is what the ModRM byte says besides the memory; None if there is no such
    byte. Of ``sizes`` is how many bytes it takes from the gpa on, where that is not its width.

    ``tail`` ends it, by its width if that is its key, else that of 0. ``before`` and ``after`` load
    its operands and store its results where those are in no general registers.

    What ``is_aligned`` faults where its memory is not.

    ``is_emulated`` says whether KVM's emulator knows it (by reading arch/x86/kvm/emulate.c).
    """

    name: str
    opcode: bytes
    effect: Effect
    real: tuple[Width, ...] = (1, 2, 4)
    long: tuple[Width, ...] = (1, 2, 4, 8)
    has_byte_form: bool = True
    register: int | None = 3
    prefix: bytes = b""
    wide: int = 8
    tail: Mapping[int, bytes] = field(default_factory=dict[int, bytes])
    takes_immediate: bool = False
    sizes: Mapping[Mode, int] = field(default_factory=dict[Mode, int])
    times: int = 1
    repeats: bool = False
    copies: bool = False
    is_stack: bool = False
    is_pair: bool = False
    stores_table: bool = False
    is_aligned: bool = False
    is_emulated: bool = True
    before: bytes = b""
    after: bytes = b""

    def widths(self, mode: Mode) -> tuple[Width, ...]:
        """Return the widths that its operand may have in a mode; none if it does not exist."""
        return self.real if mode == "real" else self.long

    def size(self, op: Instruction) -> int:
        """Return how many bytes it may read or write from its gpa on."""
        count = op.count if self.repeats else 1
        return self.sizes.get(op.mode, op.width * self.times) * count

    @property
    def is_locked(self) -> bool:
        """Whether it is atomic: it has a lock prefix, or needs none."""
        return self.prefix == _LOCK or self.name == "xchg"

    def code(self, op: Instruction) -> bytes:
        """Return its machine code, without what comes before and after it."""
        is_long = op.mode == "long"
        addresses = self.register is not None or self.repeats or self.copies
        prefixes = b"\x67" if addresses and not is_long else b""
        if op.width in (2, 4) and op.width != (4 if is_long else 2) and self.wide:
            prefixes += b"\x66"
        rex = b"\x48" if is_long and op.width == self.wide and not self.is_stack else b""
        opcode = self.opcode
        if self.has_byte_form and op.width == 1:
            opcode = opcode[:-1] + bytes((opcode[-1] & ~1,))
        modrm = b"" if self.register is None else bytes((self.register << 3 | 7,))
        immediate = bytes((op.value & 0xFF,)) if self.takes_immediate else b""
        tail = self.tail.get(op.width) or self.tail.get(0, b"")
        return prefixes + self.prefix + rex + opcode + modrm + immediate + tail


_LOCK = b"\xf0"
_REP = b"\xf3"
_REPNE = b"\xf2"
_RESET_FLAGS = 0x2


def _mask(width: int) -> int:
    return (1 << 8 * width) - 1


def _result_flags(value: int, width: int) -> int:
    """Return SF, ZF and PF of a result."""
    sign = SF if value >> 8 * width - 1 & 1 else 0
    even = PF if (value & 0xFF).bit_count() % 2 == 0 else 0
    return sign | even | (0 if value else ZF)


def _added(one: int, other: int, width: int) -> tuple[int, int]:
    """Return a sum, and all flags of it."""
    total = one + other
    value = total & _mask(width)
    carry = CF if total != value else 0
    half = AF if (one & 0xF) + (other & 0xF) > 0xF else 0
    overflow = OF if (one ^ value) & (other ^ value) & 1 << 8 * width - 1 else 0
    return value, _result_flags(value, width) | carry | half | overflow


def _compared(one: int, other: int, width: int) -> int:
    """Return all flags of ``one`` less ``other``."""
    value = one - other & _mask(width)
    borrow = CF if one < other else 0
    half = AF if one & 0xF < other & 0xF else 0
    overflow = OF if (one ^ other) & (one ^ value) & 1 << 8 * width - 1 else 0
    return _result_flags(value, width) | borrow | half | overflow


def _cmpxchg(cpu: Processor) -> None:
    """Where they differ the old value is written back: the destination is written either way."""
    at, width = cpu.di, cpu.op.width
    old = cpu.read(at, width)
    accumulator = cpu.ax & _mask(width)
    cpu.flags = _compared(accumulator, old, width)
    cpu.write(at, width, cpu.bx if accumulator == old else old)
    cpu.ax = old


def _cmpxchg_pair(cpu: Processor) -> None:
    """Like it, on two registers each; of the flags ZF alone changes."""
    half, at = cpu.op.width // 2, cpu.di
    bits, mask = 8 * half, _mask(half)
    old = cpu.read(at, 2 * half)
    is_equal = old == (cpu.dx & mask) << bits | cpu.ax & mask
    new = (cpu.cx & mask) << bits | cpu.bx & mask
    cpu.write(at, 2 * half, new if is_equal else old)
    cpu.ax, cpu.dx = old & mask, old >> bits
    cpu.flags = ZF if is_equal else 0


def _xadd(cpu: Processor) -> None:
    at, width = cpu.di, cpu.op.width
    old = cpu.read(at, width)
    value, cpu.flags = _added(old, cpu.bx & _mask(width), width)
    cpu.write(at, width, value)
    cpu.bx = old


def _xchg(cpu: Processor) -> None:
    at, width = cpu.di, cpu.op.width
    old = cpu.read(at, width)
    cpu.write(at, width, cpu.bx)
    cpu.bx = old


def _logic(of: Callable[[int, int], int]) -> Effect:
    def effect(cpu: Processor) -> None:
        width = cpu.op.width
        value = of(cpu.read(cpu.di, width), cpu.bx) & _mask(width)
        cpu.write(cpu.di, width, value)
        cpu.flags = _result_flags(value, width)
        cpu.undefined = AF

    return effect


def _add(cpu: Processor) -> None:
    width = cpu.op.width
    value, cpu.flags = _added(cpu.read(cpu.di, width), cpu.bx & _mask(width), width)
    cpu.write(cpu.di, width, value)


def _inc(cpu: Processor) -> None:
    width = cpu.op.width
    value, flags = _added(cpu.read(cpu.di, width), 1, width)
    cpu.write(cpu.di, width, value)
    cpu.flags = flags & ~CF


def _not(cpu: Processor) -> None:
    width = cpu.op.width
    cpu.write(cpu.di, width, ~cpu.read(cpu.di, width))


def _bts(cpu: Processor) -> None:
    """The immediate counts bits, modulo the width."""
    width = cpu.op.width
    old, bit = cpu.read(cpu.di, width), (cpu.op.value & 0xFF) % (8 * width)
    cpu.write(cpu.di, width, old | 1 << bit)
    cpu.flags = CF if old >> bit & 1 else 0
    cpu.undefined = OF | SF | AF | PF


def _load(cpu: Processor) -> None:
    cpu.bx = cpu.read(cpu.di, cpu.op.width)


def _store(cpu: Processor) -> None:
    cpu.write(cpu.di, cpu.op.width, cpu.bx)


def descriptor_table(op: Instruction) -> tuple[int, int]:
    """Return base and limit of the table that an instruction stores: the base is canonical."""
    return op.value & (_mask(4) if op.mode == "real" else _mask(8) >> 17), op.compare & 0xFFFF


def _load_pair(cpu: Processor) -> None:
    value = cpu.read(cpu.di, 16)
    cpu.bx, cpu.cx = value & _mask(8), value >> 64


def _store_pair(cpu: Processor) -> None:
    cpu.write(cpu.di, 16, cpu.cx << 64 | cpu.bx)


def _push(value: Callable[[Processor], int]) -> Effect:
    def effect(cpu: Processor) -> None:
        cpu.sp -= cpu.op.width
        cpu.write(cpu.sp, cpu.op.width, value(cpu))

    return effect


def _pop(cpu: Processor) -> None:
    cpu.bx = cpu.read(cpu.sp, cpu.op.width)
    cpu.sp += cpu.op.width


def _pusha(cpu: Processor) -> None:
    """SP is pushed as it was before."""
    for value in (cpu.ax, cpu.cx, cpu.dx, cpu.bx, cpu.sp, cpu.bp, cpu.si, cpu.di):
        cpu.sp -= cpu.op.width
        cpu.write(cpu.sp, cpu.op.width, value)


def _store_table(cpu: Processor) -> None:
    """The limit, and the base as wide as the operand."""
    base, limit = descriptor_table(cpu.op)
    cpu.write(cpu.di, 2 + cpu.op.width, base << 16 | limit)


def _step(cpu: Processor) -> int:
    return -cpu.op.width if cpu.op.down else cpu.op.width


def _move(cpu: Processor) -> None:
    width = cpu.op.width
    cpu.write(cpu.di, width, cpu.read(cpu.si, width))
    cpu.si += _step(cpu)
    cpu.di += _step(cpu)


def _fill(cpu: Processor) -> None:
    cpu.write(cpu.di, cpu.op.width, cpu.ax)
    cpu.di += _step(cpu)


def _scan(cpu: Processor) -> None:
    width = cpu.op.width
    cpu.flags = _compared(cpu.ax & _mask(width), cpu.read(cpu.di, width), width)
    cpu.di += _step(cpu)


def _compare(cpu: Processor) -> None:
    width = cpu.op.width
    cpu.flags = _compared(cpu.read(cpu.si, width), cpu.read(cpu.di, width), width)
    cpu.si += _step(cpu)
    cpu.di += _step(cpu)


def _repeated(once: Effect, while_zf: bool | None = None) -> Effect:
    """Return what an effect is when it is repeated CX times, or until ZF is another."""

    def effect(cpu: Processor) -> None:
        while cpu.cx:
            once(cpu)
            cpu.cx -= 1
            if while_zf is not None and bool(cpu.flags & ZF) is not while_zf:
                return

    return effect


def _string(
    name: str, opcode: bytes, effect: Effect, copies: bool = False, prefix: bytes = _REP
) -> Row:
    return Row(
        name,
        opcode,
        effect,
        register=None,
        prefix=prefix,
        repeats=bool(prefix),
        copies=copies,
    )


def _stack(
    name: str,
    opcode: bytes,
    effect: Effect,
    long: tuple[Width, ...] = (2, 8),
    tail: Mapping[int, bytes] | None = None,
    times: int = 1,
) -> Row:
    return Row(
        name,
        opcode,
        effect,
        real=(2, 4),
        long=long,
        has_byte_form=False,
        register=None,
        tail=tail or {},
        times=times,
        is_stack=True,
    )


def _table(name: str, register: int) -> Row:
    """A row of a descriptor table's register: ``value`` is its base, ``compare`` its limit."""
    return Row(
        name,
        b"\x0f\x01",
        _store_table,
        real=(4,),
        long=(8,),
        has_byte_form=False,
        register=register,
        wide=16,
        sizes={"real": 6, "long": 10},
        stores_table=True,
    )


_ROWS = (
    Row("lock-cmpxchg", b"\x0f\xb1", _cmpxchg, prefix=_LOCK),
    Row("cmpxchg", b"\x0f\xb1", _cmpxchg),
    Row(
        "lock-cmpxchg8b",
        b"\x0f\xc7",
        _cmpxchg_pair,
        real=(8,),
        long=(8,),
        has_byte_form=False,
        register=1,
        prefix=_LOCK,
        wide=0,
        is_pair=True,
    ),
    Row(
        "lock-cmpxchg16b",
        b"\x0f\xc7",
        _cmpxchg_pair,
        real=(),
        long=(16,),
        has_byte_form=False,
        register=1,
        prefix=_LOCK,
        wide=16,
        is_pair=True,
        is_aligned=True,
        is_emulated=False,
    ),
    Row("lock-xadd", b"\x0f\xc1", _xadd, prefix=_LOCK),
    Row("xadd", b"\x0f\xc1", _xadd),
    Row("xchg", b"\x87", _xchg),
    Row("lock-or", b"\x09", _logic(int.__or__), prefix=_LOCK),
    Row("or", b"\x09", _logic(int.__or__)),
    Row("lock-and", b"\x21", _logic(int.__and__), prefix=_LOCK),
    Row("and", b"\x21", _logic(int.__and__)),
    Row("add", b"\x01", _add),
    Row("lock-inc", b"\xff", _inc, register=0, prefix=_LOCK),
    Row("inc", b"\xff", _inc, register=0),
    Row("not", b"\xf7", _not, register=2),
    Row(
        "lock-bts",
        b"\x0f\xba",
        _bts,
        real=(2, 4),
        long=(2, 4, 8),
        has_byte_form=False,
        register=5,
        prefix=_LOCK,
        takes_immediate=True,
    ),
    Row(
        "bts",
        b"\x0f\xba",
        _bts,
        real=(2, 4),
        long=(2, 4, 8),
        has_byte_form=False,
        register=5,
        takes_immediate=True,
    ),
    Row("load", b"\x8b", _load),
    Row("store", b"\x89", _store),
    Row(
        "load-vector",
        b"\x0f\x10",
        _load_pair,
        real=(),
        long=(16,),
        has_byte_form=False,
        register=0,
        wide=0,
        is_emulated=False,  # Nor is what moves the vector to BX and CX.
        after=bytes.fromhex("66480f7ec3660f73d80866480f7ec1"),
    ),
    Row(
        "store-vector",
        b"\x0f\x11",
        _store_pair,
        real=(),
        long=(16,),
        has_byte_form=False,
        register=0,
        wide=0,
        is_emulated=False,
        before=bytes.fromhex("66480f6ec366480f6ec9660f6cc1"),
    ),
    _stack("push", b"\x53", _push(lambda cpu: cpu.bx)),
    _stack("pushf", b"\x9c", _push(lambda cpu: _RESET_FLAGS)),
    _stack("pop", b"\x5b", _pop),
    _stack("pusha", b"\x60", _pusha, long=(), times=8),
    _stack("call", b"\xe8", _push(lambda cpu: cpu.next_ip), (8,), {2: bytes(2), 0: bytes(4)}),
    _stack("enter", b"\xc8", _push(lambda cpu: cpu.bp), (8,), {0: bytes(3)}),
    _table("sgdt", 0),
    _table("sidt", 1),
    _string("movs", b"\xa5", _move, copies=True, prefix=b""),
    _string("rep-movs", b"\xa5", _repeated(_move), copies=True),
    _string("rep-stos", b"\xab", _repeated(_fill)),
    _string("repne-scas", b"\xaf", _repeated(_scan, while_zf=False), prefix=_REPNE),
    _string("repe-cmps", b"\xa7", _repeated(_compare, while_zf=True), copies=True),
)

INSTRUCTIONS: Mapping[str, Row] = {row.name: row for row in _ROWS}
"""Every instruction by its name."""


def accessed(op: Instruction) -> tuple[tuple[int, int], ...]:
    """Return the (gpa, length) of what an instruction may read or write; () if there is no such."""
    row = INSTRUCTIONS.get(op.name)
    if row is None:
        return ()
    size = row.size(op)
    return ((op.gpa, size), (op.source, size)) if row.copies else ((op.gpa, size),)


def instruction_problem(op: Instruction) -> str:
    """Return what is wrong with an instruction, beginning with the field; empty if nothing is."""
    row = INSTRUCTIONS.get(op.name)
    if row is None:
        return f".name: {op.name!r} is none of {', '.join(INSTRUCTIONS)}"
    widths = row.widths(op.mode)
    if op.width not in widths:
        offered = ", ".join(map(str, widths)) or "nothing"
        return f".width: {op.name} takes {offered} in mode {op.mode!r}"
    for name in ("value", "compare", "value_high", "compare_high"):
        if not 0 <= getattr(op, name) < 1 << 64:
            return f".{name}: an unsigned 64-bit number is needed"
    if not row.repeats and (op.count, op.down) != (1, False):
        return f".{'down' if op.count == 1 else 'count'}: {op.name} is no string instruction"
    if not 1 <= op.count * op.width <= MAX_STRING_BYTES:
        return f".count: a string instruction goes over 1 to {MAX_STRING_BYTES:#x} bytes"
    if row.is_aligned and op.gpa % op.width:
        return f".gpa: {op.name} takes a multiple of {op.width}"
    if op.source and not row.copies:
        return f".source: {op.name} has one place in memory only"
    if op.mode == "real" and any(gpa + length > _REAL_MODE_END for gpa, length in accessed(op)):
        return ".gpa: real mode ends with 4 GiB"
    return ""


def operands(op: Instruction, gpa: int, source: int) -> dict[str, int]:
    """Return what registers hold before an instruction, by their 64-bit names.

    ``gpa`` and ``source`` are where its operands are: addresses as its mode has them.
    """
    row = INSTRUCTIONS[op.name]
    size = row.size(op)
    last = size - op.width if op.down else 0
    bits = 64 if op.mode == "long" else 32
    mask = (1 << min(8 * op.width // (2 if row.is_pair else 1), bits)) - 1
    return {
        "rax": op.compare & mask,
        "rbx": op.value & mask,
        "rcx": op.count if row.repeats else op.value_high & mask,
        "rdx": op.compare_high & mask,
        "rsp": gpa + size if row.is_stack else 0,
        "rbp": op.value_high & mask,
        "rsi": source + last if row.copies else 0,
        "rdi": gpa + last,
    }
