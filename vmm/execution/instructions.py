"""One instruction as the guest executes it: its program, and the registers before and after."""

from collections.abc import Callable

from guests import image
from vmm.kvm.exits import Io, VcpuExit
from vmm.kvm.registers import RFLAGS_ALWAYS_SET, Registers
from vmm.scenario.history import Mmio, Ran
from vmm.scenario.instruction_effects import ARITHMETIC, descriptor_table, way
from vmm.scenario.instructions import (
    CODE_OFFSET,
    DATA_PORT,
    INSTRUCTIONS,
    bp_begin,
    operands,
)
from vmm.scenario.operations import Instruction

END_LENGTH = 2
"""The bytes of a program's last instruction: out to the port that says that it ended."""

_DIRECTION = 1 << 10
_END = bytes((0xE6, image.END_PORT))
_LEAST_ACCESSES = 64
_MOST_TIMES = 4
"""The most times that an element is read: KVM's emulator reads a port ahead, perhaps again."""


def program(op: Instruction) -> bytes:
    """Return the code for `CODE_OFFSET` of the guest's slot."""
    row = INSTRUCTIONS[op.name]
    return row.before + row.code(op) + row.after + _END


def registers_of(op: Instruction, address: Callable[[int], int]) -> Registers:
    """Return the registers before an instruction; ``address`` maps a gpa to a guest address."""
    has_source = INSTRUCTIONS[op.name].copies
    values = operands(op, address(op.gpa), address(op.source) if has_source else 0)
    flags = RFLAGS_ALWAYS_SET | (_DIRECTION if op.down else 0)
    return Registers(rip=CODE_OFFSET, rflags=flags, **values)


def table_of(op: Instruction) -> tuple[int, int] | None:
    """Return the descriptor table to set (base, limit); None if the instruction stores none."""
    return descriptor_table(op) if INSTRUCTIONS[op.name].stores_table else None


def accesses_of(op: Instruction) -> int:
    """Return how many accesses an instruction makes at most."""
    return _LEAST_ACCESSES + 2 * op.count


class Port:
    """The port that an instruction reads, or writes to."""

    def __init__(self, op: Instruction) -> None:
        self._kind = INSTRUCTIONS[op.name].port
        self._each = (op.value & (1 << 8 * op.width) - 1).to_bytes(op.width, "little")
        self._left = _LEAST_ACCESSES + _MOST_TIMES * op.count
        self.sent = b""
        self.taken = 0

    def serve(self, leaving: VcpuExit | None, complete_read: Callable[[bytes], None]) -> bool:
        """Serve an exit for the port; return False if it is none, or one too many."""
        if not isinstance(leaving, Io) or leaving.port != DATA_PORT or not self._kind:
            return False
        is_as_asked = leaving.is_write == (self._kind == "to")
        self._left -= leaving.count
        is_whole = len(leaving.data) == leaving.count * len(self._each) > 0
        if not is_as_asked or not is_whole or self._left < 0:
            return False
        if leaving.is_write:
            self.sent += leaving.data
        else:
            complete_read(self._each * leaving.count)
            self.taken += len(leaving.data)
        return True


def ran(
    op: Instruction,
    before: Registers,
    after: Registers,
    exits: tuple[Mmio, ...],
    port: Port | None = None,
) -> Ran:
    """Return the outcome of an instruction that ended."""
    bits = 64 if op.mode == "long" else 32
    mask = (1 << bits) - 1
    return Ran(
        after.rax & mask,
        after.rbx & mask,
        after.rcx & mask,
        after.rdx & mask,
        way(before.rsp, after.rsp, op.mode),
        way(before.rsi, after.rsi, op.mode),
        way(before.rdi, after.rdi, op.mode),
        after.rflags & ARITHMETIC,
        exits,
        bp=way(bp_begin(op, before.rsp, before.rbp), after.rbp & mask, op.mode),
        sent=b"" if port is None else port.sent,
        taken=0 if port is None else port.taken,
    )
