"""The registers of a vCPU as values, with the names and units of `struct kvm_regs`."""

from collections.abc import Mapping
from operator import attrgetter
from struct import Struct

import msgspec

from kvm_abi import raw
from kvm_abi.raw import Buffer, CData, WrongAnswerError

RFLAGS_ALWAYS_SET = 0x2


def check_values(call: str, seen: Mapping[str, int], wanted: Mapping[str, int], which: str) -> None:
    """Raise `WrongAnswerError` for the first register that `call` answers wrongly.

    `which` says of the right value, at "{}", where it is from.
    """
    for name, value in wanted.items():
        if seen[name] != value:
            right = which.format(hex(value))
            raise WrongAnswerError(call, f"{name}={seen[name]:#x}, which was {right}")


class Registers(msgspec.Struct, frozen=True, gc=False):
    """The general registers, in the order of the structure.

    >>> from vmm import Registers
    >>> Registers(rax=7, rip=0x1000).rflags
    2
    """

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = RFLAGS_ALWAYS_SET


_PACKED = Struct("<18Q")  # struct kvm_regs

_values = attrgetter(*Registers.__struct_fields__)

# Types of ordinary segments, accessed: execute and read; read and write.
_CODE = 0xB
_DATA = 0x3
_FLAT_LIMIT = 0xFFFF_FFFF
_REAL_LIMIT = 0xFFFF
_REAL_MODE_GPAS = range(1 << 32)

# Selectors without a descriptor table: nothing ever loads them.
_CODE_SELECTOR = 0x08
_DATA_SELECTOR = 0x10

_PAGED_CR0 = 0x8001_0031  # PG, WP, NE, ET, PE
_CR4_PSE, _CR4_PAE = 1 << 4, 1 << 5
_CR4_SSE = 1 << 9 | 1 << 10  # OSFXSR, OSXMMEXCPT
_EFER_LONG = 1 << 8 | 1 << 10  # LME, LMA


def registers_of(regs: CData) -> Registers:
    """Return a copy of a `struct kvm_regs *`."""
    return Registers(*_values(regs))


def raw_registers(registers: Registers) -> CData:
    """Return a `struct kvm_regs *` with the same values."""
    return raw.new("struct kvm_regs *", _values(registers))


def put_registers(memory: Buffer, offset: int, registers: Registers) -> None:
    """Write a `struct kvm_regs` into memory."""
    _PACKED.pack_into(memory, offset, *_values(registers))


def read_registers(memory: Buffer, offset: int) -> Registers:
    """Read a `struct kvm_regs` from memory."""
    return Registers(*_PACKED.unpack_from(memory, offset))


def set_big_real_mode(sregs: CData) -> None:
    """Turn the reset state in a `struct kvm_sregs *` into big real mode, for any CS and SS.

    Data segments begin at 0 and have no limit below 4 GiB: an offset is a gpa.
    """
    for name in ("ds", "es", "fs", "gs"):
        segment = getattr(sregs, name)
        segment.base, segment.selector, segment.limit = 0, 0, _FLAT_LIMIT
        segment.type, segment.g = _DATA, 1
    for name, kind in (("cs", _CODE), ("ss", _DATA)):
        segment = getattr(sregs, name)
        segment.limit, segment.type, segment.g = _REAL_LIMIT, kind, 0


def set_flat_stack(sregs: CData) -> None:
    """Give big real mode a stack segment like its data segments, and a 32-bit stack pointer."""
    stack = sregs.ss
    stack.base, stack.selector = 0, 0
    stack.limit, stack.g, stack.db = _FLAT_LIMIT, 1, 1


def set_descriptor_tables(sregs: CData, base: int, limit: int) -> None:
    """Set GDTR and IDTR to the same base and limit."""
    for table in (sregs.gdt, sregs.idt):
        table.base, table.limit = base, limit


def set_long_mode(sregs: CData) -> None:
    """Turn the reset state in a `struct kvm_sregs *` into 64-bit mode, for any CR3.

    Segments are flat, the code has privilege level 0, and there is no interrupt table.
    """
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = getattr(sregs, name)
        segment.base, segment.limit, segment.g = 0, _FLAT_LIMIT, 1
        segment.selector = _CODE_SELECTOR if name == "cs" else _DATA_SELECTOR
        segment.type = _CODE if name == "cs" else _DATA
        segment.l, segment.db = (1, 0) if name == "cs" else (0, 1)
    sregs.idt.limit = 0
    sregs.cr0, sregs.cr4, sregs.efer = _PAGED_CR0, _CR4_PAE | _CR4_SSE, _EFER_LONG


def set_32_bit_mode(sregs: CData, pae: bool) -> None:
    """Turn 64-bit mode in a `struct kvm_sregs *` into 32-bit mode with paging, for any CR3."""
    sregs.cs.l, sregs.cs.db = 0, 1
    sregs.cr4, sregs.efer = (_CR4_PAE if pae else _CR4_PSE) | _CR4_SSE, 0


def set_base(segment: CData, base: int) -> None:
    """Set the base of a segment of real mode to a gpa below 4 GiB. Raises `ValueError`."""
    if base not in _REAL_MODE_GPAS:
        raise ValueError(f"real mode reaches the first 4 GiB, and base={base:#x} is not there")
    # The selector only matters to a processor that derives the base from it.
    selector = base >> 4 & 0xFFFF
    segment.base, segment.selector = base, selector
