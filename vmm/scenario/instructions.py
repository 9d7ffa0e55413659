"""The instructions that a guest can execute: one row each.

A row says how an instruction is encoded, and names its effect (`vmm.scenario.instruction_effects`).
What its accesses do in a slot, in a READONLY slot or in a hole, the model says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vmm.scenario import instruction_effects as effects
from vmm.scenario.instruction_effects import Effect
from vmm.scenario.instruction_operation import Instruction, Width

CODE_OFFSET = 0x8000
"""The offset of the instruction in the guest's slot, if no code comes before it."""

FORCE = bytes.fromhex("0f0b 6b766d")
"""KVM_FEP: ud2 and "kvm", a prefix that makes KVM emulate if kvm.force_emulation_prefix is set."""

DATA_PORT = 0xE2
"""The port that ins reads, and outs writes to."""

MAX_STRING_BYTES = 0x4000
"""The most bytes that a string instruction works on."""

_REAL_MODE_END = 1 << 32

_FRAME_BYTES = 0x40

Mode = Literal["real", "long"]


@dataclass(frozen=True, slots=True)
class Row:
    """An instruction: how it is encoded, and its ``effect``.

    ``real`` and ``long`` are the widths that its operand may have in each mode. The ``opcode``
    follows the prefixes; if the instruction ``has_byte_form``, the lowest bit of the opcode says
    that the operand is wider than a byte. ``register`` is the reg field of the ModRM byte; None if
    there is no such byte. ``sizes`` has the bytes accessed from the gpa on, per mode, if they are
    not the operand's width.

    ``tail`` has the bytes that end the encoding, by width; the key 0 is for all other widths.
    ``before`` and ``after`` are code that loads operands and stores results if those are not in
    general registers.

    If it ``takes_bit_offset``, BX says how far from [DI] its access is; that is at the gpa.

    The memory operand is at [DI], or on the stack: below SP, or from SP on if it ``pops``; from BP
    on if it leaves a ``frame``. If it ``loads``, the operand is at [SI]. If it ``copies``, it has a
    source, too: at [SI], or for a stack instruction at [DI].

    ``port``: the instruction writes what it reads from memory to a port, or what it reads from a
    port to memory.

    ``is_aligned``: unaligned memory faults. ``needs_cpuid``: KVM's emulator raises #UD unless CPUID
    has the feature. ``cannot_exit``: KVM's emulator stores in a way that never exits with MMIO.
    ``is_emulated``: KVM's emulator knows the instruction (by reading arch/x86/kvm/emulate.c).
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
    takes_bit_offset: bool = False
    sizes: Mapping[Mode, int] = field(default_factory=dict[Mode, int])
    times: int = 1
    repeats: bool = False
    copies: bool = False
    is_stack: bool = False
    pops: bool = False
    frame: Literal["", "makes", "leaves"] = ""
    loads: bool = False
    port: Literal["", "from", "to"] = ""
    is_pair: bool = False
    stores_table: bool = False
    cannot_exit: bool = False
    is_aligned: bool = False
    is_emulated: bool = True
    needs_cpuid: bool = False
    before: bytes = b""
    after: bytes = b""

    def widths(self, mode: Mode) -> tuple[Width, ...]:
        """Return the widths that its operand may have in a mode; empty if it has no such form."""
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
        """Return its machine code, without ``before`` and ``after``."""
        is_long = op.mode == "long"
        addresses = self.register is not None or not self.is_stack
        prefixes = FORCE if op.forced else b""
        prefixes += b"\x67" if addresses and not is_long else b""
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


def _locked(row: Row) -> Row:
    """Return an instruction with a lock prefix."""
    return replace(row, name=f"lock-{row.name}", prefix=_LOCK)


def _string(
    name: str,
    opcode: bytes,
    effect: Effect,
    copies: bool = False,
    loads: bool = False,
    port: Literal["", "from", "to"] = "",
) -> Row:
    return Row(
        name,
        opcode,
        effect,
        long=(1, 2, 4) if port else (1, 2, 4, 8),
        register=None,
        copies=copies,
        loads=loads,
        port=port,
    )


def _repeated(prefix: str, row: Row, code: bytes = _REP, while_zf: bool | None = None) -> Row:
    """Return a string instruction with a repeat prefix; see `effects.repeated` for ``while_zf``."""
    effect = effects.repeated(row.effect, while_zf)
    return replace(row, name=f"{prefix}-{row.name}", effect=effect, prefix=code, repeats=True)


def _stack(
    name: str,
    opcode: bytes,
    effect: Effect,
    long: tuple[Width, ...] = (2, 8),
    pops: bool = False,
    operand: int | None = None,
) -> Row:
    """Return a stack instruction; with ``operand`` (its reg field) it has an operand at [DI]."""
    return Row(
        name,
        opcode,
        effect,
        real=(2, 4),
        long=long,
        has_byte_form=False,
        register=operand,
        copies=operand is not None,
        is_stack=True,
        pops=pops,
    )


_FNINIT = bytes.fromhex("dbe3")
_TO_XMM0 = bytes.fromhex("66480f6ec366480f6ec9660f6cc1")
_FROM_XMM0 = bytes.fromhex("66480f7ec3660f73d80866480f7ec1")
"""Code that copies BX and CX to XMM0, and code that copies XMM0 to BX and CX."""


def _fx(
    name: str,
    register: int,
    effect: Effect,
    mode: Mode,
    before: bytes = b"",
    after: bytes = b"",
) -> Row:
    """Return an instruction on the x87 and vector state; KVM emulates only the 32-bit form."""
    is_real = mode == "real"
    return Row(
        name,
        b"\x0f\xae",
        effect,
        real=(16,) if is_real else (),
        long=() if is_real else (16,),
        has_byte_form=False,
        register=register,
        wide=16,
        sizes={"real": 512, "long": 512},
        is_aligned=True,
        is_emulated=is_real,
        needs_cpuid=is_real,
        cannot_exit=is_real,
        before=before,
        after=after,
    )


def _table(name: str, register: int) -> Row:
    """Return an instruction that stores a descriptor table register.

    The operation's ``value`` is the base, and its ``compare`` the limit.
    """
    return Row(
        name,
        b"\x0f\x01",
        effects.store_table,
        real=(4,),
        long=(8,),
        has_byte_form=False,
        register=register,
        wide=16,
        sizes={"real": 6, "long": 10},
        stores_table=True,
        cannot_exit=True,
    )


_CMPXCHG = Row("cmpxchg", b"\x0f\xb1", effects.cmpxchg)
_CMPXCHG8B = Row(
    "cmpxchg8b",
    b"\x0f\xc7",
    effects.cmpxchg_pair,
    real=(8,),
    long=(8,),
    has_byte_form=False,
    register=1,
    wide=0,
    is_pair=True,
)
_CMPXCHG16B = replace(
    _CMPXCHG8B,
    name="cmpxchg16b",
    real=(),
    long=(16,),
    wide=16,
    is_aligned=True,
    is_emulated=False,
)
_XADD = Row("xadd", b"\x0f\xc1", effects.xadd)
_OR = Row("or", b"\x09", effects.logic(int.__or__))
_AND = Row("and", b"\x21", effects.logic(int.__and__))
_INC = Row("inc", b"\xff", effects.inc, register=0)
_BTS = Row(
    "bts",
    b"\x0f\xba",
    effects.bts,
    real=(2, 4),
    long=(2, 4, 8),
    has_byte_form=False,
    register=5,
    takes_immediate=True,
)
_BTS_REGISTER = replace(
    _BTS,
    name="bts-register",
    opcode=b"\x0f\xab",
    effect=effects.bts_register,
    register=3,
    takes_immediate=False,
    takes_bit_offset=True,
)
_MOVS = _string("movs", b"\xa5", effects.move, copies=True)
_STOS = _string("stos", b"\xab", effects.fill)
_SCAS = _string("scas", b"\xaf", effects.scan)
_CMPS = _string("cmps", b"\xa7", effects.compare, copies=True)
_INS = _string("ins", b"\x6d", effects.take_in, port="from")
_OUTS = _string("outs", b"\x6f", effects.send_out, loads=True, port="to")

_ROWS = (
    _locked(_CMPXCHG),
    _CMPXCHG,
    _locked(_CMPXCHG8B),
    _locked(_CMPXCHG16B),
    _CMPXCHG8B,
    _locked(_XADD),
    _XADD,
    Row("xchg", b"\x87", effects.xchg),
    _locked(_OR),
    _OR,
    _locked(_AND),
    _AND,
    Row("add", b"\x01", effects.add),
    _locked(_INC),
    _INC,
    Row("not", b"\xf7", effects.invert, register=2),
    _locked(_BTS),
    _BTS,
    _locked(_BTS_REGISTER),
    _BTS_REGISTER,
    Row("cmp", b"\x39", effects.compare_register),
    Row("load", b"\x8b", effects.load),
    Row("store", b"\x89", effects.store),
    Row(
        "load-vector",
        b"\x0f\x10",
        effects.load_pair,
        real=(),
        long=(16,),
        has_byte_form=False,
        register=0,
        wide=0,
        is_emulated=False,  # Nor is the code that copies XMM0.
        after=_FROM_XMM0,
    ),
    Row(
        "store-vector",
        b"\x0f\x11",
        effects.store_pair,
        real=(),
        long=(16,),
        has_byte_form=False,
        register=0,
        wide=0,
        is_emulated=False,
        before=_TO_XMM0,
    ),
    _stack("push", b"\x53", effects.push(lambda cpu: cpu.bx)),
    _stack("pushf", b"\x9c", effects.push(lambda cpu: effects.RESET_FLAGS)),
    _stack("push-memory", b"\xff", effects.push_memory, operand=6),
    _stack("pop", b"\x5b", effects.pop, pops=True),
    _stack("pop-memory", b"\x8f", effects.pop_memory, pops=True, operand=0),
    replace(_stack("pusha", b"\x60", effects.pusha, long=()), times=8),
    replace(_stack("popa", b"\x61", effects.popa, long=(), pops=True), times=8),
    replace(
        _stack("call", b"\xe8", effects.push(lambda cpu: cpu.next_ip), (8,)),
        tail={2: bytes(2), 0: bytes(4)},
    ),
    _stack("ret", b"\xc3", effects.ret, (8,), pops=True),
    replace(_stack("enter", b"\xc8", effects.enter, (8,)), tail={0: bytes(3)}, frame="makes"),
    # With a 16-bit operand the processor that bochs emulates pops 64 bits.
    replace(_stack("leave", b"\xc9", effects.leave, (8,), pops=True), frame="leaves"),
    _table("sgdt", 0),
    _table("sidt", 1),
    _fx("fxsave", 0, effects.fxsave, "real", before=_FNINIT),
    _fx("fxsave64", 0, effects.fxsave64, "long", before=_FNINIT + _TO_XMM0),
    _fx("fxrstor64", 1, effects.fxrstor64, "long", after=_FROM_XMM0),
    _MOVS,
    _string("lods", b"\xad", effects.load_element, loads=True),
    _STOS,
    _SCAS,
    _CMPS,
    _INS,
    _OUTS,
    _repeated("rep", _MOVS),
    _repeated("rep", _STOS),
    _repeated("repne", _SCAS, _REPNE, while_zf=False),
    _repeated("repe", _CMPS, while_zf=True),
    _repeated("rep", _INS),
    _repeated("rep", _OUTS),
)

INSTRUCTIONS: Mapping[str, Row] = {row.name: row for row in _ROWS}
"""Every instruction by its name."""


def accessed(op: Instruction) -> tuple[tuple[int, int], ...]:
    """Return each (gpa, length) that an instruction may access; () if its name is unknown."""
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
    if op.forced and not row.is_emulated:
        return f".forced: KVM's emulator does not know {op.name}"
    if op.source and not row.copies:
        return f".source: {op.name} has one place in memory only"
    if op.mode == "real" and any(gpa + length > _REAL_MODE_END for gpa, length in accessed(op)):
        return ".gpa: real mode ends with 4 GiB"
    return ""


def operands(op: Instruction, gpa: int, source: int) -> dict[str, int]:
    """Return the registers before an instruction, by their 64-bit names.

    ``gpa`` and ``source`` are the addresses of its operands, as its mode has them.
    """
    row = INSTRUCTIONS[op.name]
    size = row.size(op)
    last = size - op.width if op.down else 0
    top = gpa if row.pops else gpa + size
    if row.is_stack and row.copies:
        at_di, at_si = source, 0
    else:
        at_di, at_si = gpa + last, source + last if row.copies else gpa + last if row.loads else 0
    bits = 64 if op.mode == "long" else 32
    mask = _mask_of(op)
    value = op.value
    if row.takes_bit_offset:
        value = effects.bit_offset(op)
        at_di = at_di - effects.bit_displacement(op) & (1 << bits) - 1
    if row.frame == "leaves":  # It takes SP from BP, so SP points elsewhere before.
        top = gpa + _FRAME_BYTES & (1 << bits) - 1
    return {
        "rax": op.compare & mask,
        "rbx": value & mask,
        "rcx": op.count if row.repeats else op.value_high & mask,
        "rdx": DATA_PORT if row.port else op.compare_high & mask,
        "rsp": top if row.is_stack else 0,
        "rbp": gpa if row.frame == "leaves" else op.value_high & mask,
        "rsi": at_si,
        "rdi": at_di,
    }


def bp_begin(op: Instruction, sp: int, bp: int) -> int:
    """Return the value that BP after an instruction is relative to, from ``sp`` and ``bp`` before.

    It is SP if the instruction makes a frame, and the part of BP above the operand's width if it
    leaves one.
    """
    match INSTRUCTIONS[op.name].frame:
        case "makes":
            return sp
        case "leaves":
            return bp & -(1 << 8 * op.width)
        case "":
            return op.value_high & _mask_of(op)


def _mask_of(op: Instruction) -> int:
    bits = 64 if op.mode == "long" else 32
    return (1 << min(8 * op.width // (2 if INSTRUCTIONS[op.name].is_pair else 1), bits)) - 1
