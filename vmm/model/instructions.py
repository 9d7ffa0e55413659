"""The outcomes of one instruction of a guest: its accesses, simulated in order.

The table of `vmm.scenario.instructions` says what it reads and writes, by the architecture's
manuals; this module says where those accesses land, and which of them exit.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from vmm.model.accesses import (
    HOLE,
    READ_ONLY,
    STRADDLE,
    Accesses,
    changed_bytes,
    exits_of,
    faults,
    leaves_memory,
)
from vmm.model.allowed import Allowed
from vmm.model.backing import HOST_FOLLOWS, HVA_ABSENT, Piece
from vmm.model.ioapic import may_answer
from vmm.model.rule import Rule, documented, source
from vmm.scenario.history import Mmio, Ran, Stopped, joined
from vmm.scenario.instruction_effects import ARITHMETIC, way
from vmm.scenario.instructions import CODE_OFFSET, INSTRUCTIONS, Row, accessed, bp_begin, operands
from vmm.scenario.operations import Instruction

INSTRUCTION = documented(
    "instruction",
    "an instruction on a slot's memory reads it, writes it, and leaves registers and flags, as the "
    "architecture says, whether the processor or KVM carries it out",
    "api.rst 4.35; Intel SDM vol. 2, AMD APM vol. 3",
)
READ_THEN_WRITE = source(
    "read-then-write",
    "an instruction that reads and writes memory exits twice where a gpa has no slot, and once, "
    "with what it writes, where the slot is READONLY; a comparison that fails writes the old value",
    "api.rst 5, KVM_EXIT_MMIO; Intel SDM vol. 2, CMPXCHG; x86_emulate_insn",
)
NOT_EMULATED = documented(
    "not-emulated",
    "an instruction that KVM has to emulate, and cannot, stops the vCPU with "
    "KVM_EXIT_INTERNAL_ERROR: cmpxchg16b, or fxsave of 64 bits, that exits, or anywhere on a "
    "backend that emulates",
    "api.rst 5, KVM_EXIT_INTERNAL_ERROR; KVM_INTERNAL_ERROR_EMULATION",
)
ATOMIC_ABSENT = source(
    "atomic-absent",
    "a locked instruction on memory that the host took away fails: EFAULT, or an internal error "
    "where KVM emulates it",
    "emulator_cmpxchg_emulated",
)

_INTERNAL_ERROR = Stopped("internal-error")
_UNKNOWN_KINDS = ("unknown", "fault")
_Known = Literal["known", "anything", "perhaps"]


class _Step(NamedTuple):
    """An access: the data if it writes, and whether the data, and the write, are certain."""

    pieces: tuple[Piece, ...]
    data: bytes | None
    is_known: _Known = "known"


class Simulation:
    """A processor that records what it does to memory; nothing changes before `commit`."""

    def __init__(self, accesses: Accesses, op: Instruction) -> None:
        self.op = op
        self._row = INSTRUCTIONS[op.name]
        self._accesses = accesses
        self._begin = operands(op, op.gpa, op.source)
        begin = self._begin
        self.ax, self.bx, self.cx, self.dx = (begin[name] for name in ("rax", "rbx", "rcx", "rdx"))
        self.sp, self.bp, self.si, self.di = (begin[name] for name in ("rsp", "rbp", "rsi", "rdi"))
        self.flags = self.undefined = 0
        self.is_bp_known = True
        self.next_ip = CODE_OFFSET + len(self._row.before) + len(self._row.code(op))
        self._steps: list[_Step] = []
        self._written: dict[tuple[str, int], int] = {}
        self._exits: list[Mmio] = []
        self._perhaps: list[Mmio] = []
        self._sent, self._taken = b"", 0
        self._is_vague = False
        self.is_lost = False

    def read(self, gpa: int, length: int) -> int:
        """Return ``length`` bytes of memory as a number; those outside of memory exit."""
        pieces = self._accesses.reached(self.op, gpa, length)
        self._steps.append(_Step(pieces, None))
        self._exits += exits_of(pieces)
        self.is_lost |= self._accesses.are_vague(pieces)
        data = bytearray(self._accesses.read(pieces))
        at = 0
        for piece in pieces:
            if self._written and piece.kind == "memory":
                for byte in range(piece.length):
                    new = self._written.get((piece.mapping, piece.offset + byte))
                    if new is not None:
                        data[at + byte] = new
            at += piece.length
        return int.from_bytes(data, "little")

    def write(self, gpa: int, length: int, value: int) -> None:
        """Write the low ``length`` bytes of a number; those outside of writable memory exit."""
        data = (value & (1 << 8 * length) - 1).to_bytes(length, "little")
        pieces = self._accesses.reached(self.op, gpa, length)
        self._steps.append(_Step(pieces, data))
        self._exits += exits_of(pieces, data)
        at = 0
        for piece in pieces:
            if not leaves_memory(piece, write=True):
                for byte in range(piece.length):
                    self._written[piece.mapping, piece.offset + byte] = data[at + byte]
            at += piece.length

    def write_anything(self, gpa: int, length: int, *, surely: bool = True) -> None:
        """Write bytes that the architecture leaves open; if not ``surely``, perhaps not at all."""
        pieces = self._accesses.reached(self.op, gpa, length)
        data = bytes(length)
        self._steps.append(_Step(pieces, data, "anything" if surely else "perhaps"))
        (self._exits if surely else self._perhaps).extend(exits_of(pieces, data))
        self._is_vague = True

    def take(self, length: int) -> int:
        """Read bytes from a port, which returns the same value for each element."""
        self._taken += length
        return self.op.value

    def send(self, data: bytes) -> None:
        """Write to a port."""
        self._sent += data

    def lose_track(self) -> None:
        """Note that the outcome is unknown."""
        self.is_lost = True

    def run(self) -> Ran:
        """Simulate the instruction, and return its outcome."""
        self._row.effect(self)
        begin = self._begin
        return Ran(
            self.ax,
            self.bx,
            self.cx,
            self.dx,
            way(begin["rsp"], self.sp, self.op.mode),
            way(begin["rsi"], self.si, self.op.mode),
            way(begin["rdi"], self.di, self.op.mode),
            self.flags & ARITHMETIC,
            joined(self._exits),
            self.undefined,
            unknown_exits=self._is_vague and bool(self._exits),
            bp=way(bp_begin(self.op, begin["rsp"], begin["rbp"]), self.bp, self.op.mode),
            unknown_bp=not self.is_bp_known,
            sent=self._sent,
            taken=self._taken,
        )

    @property
    def pieces(self) -> list[tuple[Piece, bool]]:
        """Each piece that was accessed, and whether it was written."""
        return [(piece, step.data is not None) for step in self._steps for piece in step.pieces]

    @property
    def rule(self) -> Rule:
        """The rule that decides: that of the most unusual piece."""
        pieces = self.pieces
        kinds = {piece.kind for piece, _ in pieces}
        if "absent" in kinds or any(write and p.protected for p, write in pieces):
            return HVA_ABSENT
        if not self._exits:
            return HOST_FOLLOWS if any(p.changed for p, _ in pieces) else INSTRUCTION
        if any(len({each.kind for each in step.pieces}) > 1 for step in self._steps):
            return STRADDLE
        if self._is_update:
            return READ_THEN_WRITE
        return HOLE if "hole" in kinds else READ_ONLY

    @property
    def _is_update(self) -> bool:
        """Whether it reads and then writes the same place."""
        writes = [step.data is not None for step in self._steps]
        return writes == [False, True] and self._steps[0].pieces == self._steps[1].pieces

    @property
    def fails_by_elements(self) -> bool:
        """Whether it is known what it does before it reaches missing memory.

        Elements of a string are done one by one. An instruction that pushes several registers may
        have pushed some.
        """
        return self._row.times == 1 and not self._is_vague

    @property
    def is_open(self) -> bool:
        """Whether it is unknown what it leaves in memory.

        A processor that saves much at once may already have begun when it leaves memory.
        """
        return self._is_vague and bool(self._exits or self._perhaps) and self.writes

    def with_all_exits(self, usual: Ran) -> Ran | None:
        """Return the outcome with all possible further exits; None if there are none."""
        if not self._perhaps:
            return None
        mmio = joined((*self._exits, *self._perhaps))
        return msgspec.structs.replace(usual, mmio=mmio, unknown_exits=True)

    def commit(self) -> None:
        """Apply all recorded accesses."""
        self._commit(self._steps)

    def commit_reads(self) -> None:
        """Apply only the reads."""
        self._commit(step for step in self._steps if step.data is None)

    def commit_before_fault(self) -> None:
        """Apply the accesses before the first one to missing memory."""
        self._commit(self._steps[: self._first_fault])

    @property
    def _first_fault(self) -> int:
        """The index of the first access to missing host memory; the number of accesses if none."""
        return next(
            (
                index
                for index, step in enumerate(self._steps)
                if any(faults(piece, step.data is not None) for piece in step.pieces)
            ),
            len(self._steps),
        )

    @property
    def writes(self) -> bool:
        """Whether it changes memory."""
        return _changes(self._steps)

    @property
    def writes_after_fault(self) -> bool:
        """Whether it would change memory at or after a fault that ends it."""
        return _changes(self._steps[self._first_fault :])

    def _commit(self, steps: Iterable[_Step]) -> None:
        for pieces, data, is_known in steps:
            if data is None:
                self._accesses.was_read(self.op.vcpu, pieces)
            elif is_known == "known":
                self._accesses.stored(self.op, pieces, data)
            else:
                self._accesses.blurred(self.op.vcpu, pieces, surely=is_known == "anything")


def _changes(steps: Iterable[_Step]) -> bool:
    return any(step.data is not None and changed_bytes(step.pieces) for step in steps)


def outcomes(accesses: Accesses, op: Instruction, devices: bool) -> tuple[Allowed, ...]:
    """Return the allowed outcomes; ``devices``: whether there are in-kernel irqchips."""
    if devices and any(may_answer(gpa, gpa + length) for gpa, length in accessed(op)):
        return ()
    row = INSTRUCTIONS[op.name]
    simulation = Simulation(accesses, op)
    outcome = simulation.run()
    pieces = [piece for piece, _ in simulation.pieces]
    if simulation.is_lost or simulation.is_open:
        return ()
    if any(piece.kind in _UNKNOWN_KINDS or piece.private for piece in pieces):
        return ()
    rule = simulation.rule
    usual = Allowed(outcome, rule, simulation.commit)
    if rule is HVA_ABSENT:
        return (usual, *_failures(row, simulation)) if simulation.fails_by_elements else ()
    more = simulation.with_all_exits(outcome)
    if more is not None:
        stop = Allowed(_INTERNAL_ERROR, NOT_EMULATED)
        return (usual, Allowed(more, rule, simulation.commit), stop)
    if not row.is_emulated:  # A backend may emulate what is in memory, too.
        reads = simulation.commit_reads
        return (usual, Allowed(_INTERNAL_ERROR, NOT_EMULATED, reads, simulation.writes))
    return (usual,)


def _failures(row: Row, simulation: Simulation) -> tuple[Allowed, ...]:
    """Return the failures of an instruction whose memory is missing."""
    is_apart = simulation.writes_after_fault
    fault = Allowed(Stopped("EFAULT"), HVA_ABSENT, simulation.commit_before_fault, is_apart)
    if row.is_locked:
        return (fault, Allowed(_INTERNAL_ERROR, ATOMIC_ABSENT, is_apart=simulation.writes))
    if not row.is_emulated:
        return (fault, Allowed(_INTERNAL_ERROR, NOT_EMULATED, is_apart=simulation.writes))
    return (fault,)
