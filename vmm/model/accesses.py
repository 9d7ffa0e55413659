"""The outcomes of guest accesses: values, MMIO exits, dirty pages, or a stopped vCPU."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

from vmm.model.allowed import Allowed, nothing
from vmm.model.array import MemslotArray
from vmm.model.backing import (
    HOST_FOLLOWS,
    HVA_ABSENT,
    HVA_WRITE_PROTECTED,
    PRIVATE_FAULT,
    Piece,
)
from vmm.model.contents import Contents
from vmm.model.dirty import Tracking
from vmm.model.ioapic import IOAPIC, answers, may_answer, unknown_bits
from vmm.model.prefault import progress
from vmm.model.regions import Memslot
from vmm.model.rule import Rule, documented, source
from vmm.scenario.content import MMIO_FILL, STUB_LENGTH, STUB_OFFSET, run_lengths, stub_identity
from vmm.scenario.history import Mmio, Stopped, Swept, Touched, private_fault
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    Execute,
    Instruction,
    PreFaultMemory,
    Sweep,
    Touch,
    access_end,
)

REACH = documented("reach", "a gpa in a slot reaches exactly that page of the slot's host memory")
HOLE = documented(
    "hole",
    "a gpa without a slot is MMIO: reads and writes exit",
    "api.rst 5, KVM_EXIT_MMIO",
)
IN_SMM = source(
    "smm",
    "a vCPU in system management mode sees the slots of as_id 1 and no other",
    "api.rst 4.35; kvm_arch_vcpu_memslots_id",
)
STRADDLE = source(
    "straddle",
    "an access across the end of a slot is split: the part inside is done in memory",
    "emulator_read_write: one fragment a page",
)
READ_ONLY = documented(
    "readonly",
    "a READONLY slot is read as memory; a write exits as MMIO and changes nothing",
)
FETCH_OUTSIDE = source(
    "fetch-outside",
    "instructions cannot be fetched from a hole: the vCPU stops",
    "api.rst 5, KVM_EXIT_INTERNAL_ERROR",
)
NO_MMU_PAGES = source(
    "no-mmu-pages",
    "before a VM has had a slot, a kernel without TDP has no pages for its own page tables: "
    "KVM_RUN is ENOSPC, where otherwise the vCPU would stop because nothing can be fetched",
    "kvm_arch_commit_memory_region, make_mmu_pages_available",
)
PRIVATE = documented(
    "private",
    "a private gpa reaches the slot's guest_memfd, which begins as zeros and keeps what is "
    "written; a shared one reaches the hva, and so does what KVM emulates",
    "api.rst 4.140; kvm_gmem_get_pfn",
)

_FILL = bytes([MMIO_FILL])
CANNOT_FETCH = ("internal-error", "EFAULT", "shutdown", "fail-entry")


def inside_smm(choices: tuple[Allowed, ...]) -> tuple[Allowed, ...]:
    """Return outcomes of an access in SMM, with the rule for SMM in place of the plain rules."""
    plain = (REACH, HOLE)
    return tuple(
        Allowed(each.outcome, IN_SMM, each.adopt, each.is_apart) if each.rule in plain else each
        for each in choices
    )


class Pieces(Protocol):
    """Divides a range of gpas into pieces, as `Backing` does."""

    def pieces(
        self, slots: MemslotArray[Memslot], gpa: int, length: int, emulated: bool = False
    ) -> tuple[Piece, ...]: ...


class Accesses:
    """Predicts accesses to one address space, and applies their effects."""

    def __init__(
        self,
        slots: MemslotArray[Memslot],
        backing: Pieces,
        contents: Contents,
        tracking: Tracking,
        devices: Callable[[], bool],
    ) -> None:
        """``devices`` says whether the VM now has in-kernel interrupt controllers."""
        self._slots = slots
        self._backing = backing
        self._contents = contents
        self._tracking = tracking
        self._devices = devices
        self._reads_make_dirty = tracking.features.reads_make_dirty
        self._emulates_real_mode = tracking.features.emulates_real_mode
        self._watch: Callable[[tuple[Piece, ...], bytes], None] | None = None

    def touch(self, op: Touch) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of one read or write of 1, 2 or 4 bytes."""
        # As `reached` does: touches are frequent.
        emulated = self._emulates_real_mode and op.gpa + op.width <= REAL_MODE_END
        pieces = self._backing.pieces(self._slots, op.gpa, op.width, emulated)
        write = op.access == "write"
        rule = _rule(pieces, write)
        if rule is None:
            return ()
        if rule is PRIVATE_FAULT:
            return _private_fault(op, pieces[0])
        if write:
            data = _element(op.value, op.width)
            exits = () if rule is REACH else exits_of(pieces, data)
            effect = self.written if self._watch is None else self.stored
            usual = Allowed(Touched(0, exits), rule, partial(effect, op, pieces, data))
        else:
            value = int.from_bytes(self.read(pieces), "little")
            exits = () if rule is REACH else exits_of(pieces)
            looked_up = partial(self.was_read, op.vcpu, pieces)
            usual = Allowed(Touched(value, exits), rule, nothing if rule is HOLE else looked_up)
        if self._devices() and may_answer(op.gpa, op.gpa + op.width):
            usual = _answered(op, pieces, usual)
        elif rule is not HVA_WRITE_PROTECTED and (pieces[0].changed or pieces[-1].changed):
            usual = Allowed(usual.outcome, HOST_FOLLOWS, usual.adopt)
        may_fault = rule is HVA_ABSENT or rule is HVA_WRITE_PROTECTED
        if may_fault and _may_fault(pieces, write):
            is_apart = write and bool(changed_bytes(pieces))
            begun = partial(self._was_begun, op, pieces)
            return (usual, Allowed(Stopped("EFAULT"), rule, begun, is_apart))
        return (usual,)

    def watch(self, watch: Callable[[tuple[Piece, ...], bytes], None]) -> None:
        """Call ``watch`` for each write that a VM's only vCPU makes in real mode, but by sweeps."""
        self._watch = watch

    def is_alone(self, vcpu: int) -> bool:
        """Whether a VM has no other vCPU."""
        return self._tracking.vcpus <= {vcpu}

    def stored(self, op: Touch | Instruction, pieces: tuple[Piece, ...], data: bytes) -> None:
        """Let a guest write ``data``, and tell whoever watches."""
        self.written(op, pieces, data)
        if self._watch is not None and self.is_alone(op.vcpu) and _is_real(op):
            self._watch(pieces, data)

    def sweep(self, op: Sweep) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of a string instruction over ``count`` elements."""
        length = op.count * op.width
        pieces = self.reached(op, op.gpa, length)
        write = op.access == "write"
        rule = _rule(pieces, write)
        if rule is None or rule is PRIVATE_FAULT:
            return ()
        if rule is not REACH and self._devices() and may_answer(op.gpa, op.gpa + length):
            return ()
        element = _element(op.value, op.width)
        if write:
            data = element * op.count
            usual = Allowed(
                Swept((), exits_of(pieces, data)), rule, partial(self.written, op, pieces, data)
            )
        else:
            runs = run_lengths(self.read(pieces), op.width)
            read = partial(self.was_read, op.vcpu, pieces)
            usual = Allowed(Swept(runs, exits_of(pieces)), rule, read)
        if not _may_fault(pieces, write):
            return (usual,)
        begun = _before_fault(pieces, op.width, op.gpa, write)
        done = (
            partial(self.written, op, begun, element * op.count)
            if write
            else partial(self.was_read, op.vcpu, pieces)
        )
        is_apart = write and changed_bytes(pieces) != changed_bytes(begun)
        return (usual, Allowed(Stopped("EFAULT"), rule, done, is_apart))

    def execute(self, op: Execute) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of running the code in a page."""
        (piece,) = self._backing.pieces(self._slots, op.gpa + STUB_OFFSET, STUB_LENGTH)
        if piece.kind in ("unknown", "fault") or piece.private:
            return ()
        if piece.kind != "memory":
            rule = FETCH_OUTSIDE if piece.kind == "hole" else HVA_ABSENT
            return tuple(Allowed(Stopped(reason), rule) for reason in CANNOT_FETCH)
        value = stub_identity(self._contents.read(piece.mapping, piece.offset, piece.length))
        if value is None:
            return ()
        return (Allowed(Touched(value), REACH, partial(self.was_read, op.vcpu, (piece,))),)

    def pre_fault(self, op: PreFaultMemory) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of pre-faulting a range; it may be logged like a read."""
        pieces = tuple(self._mappable(op))
        read = partial(self.was_read, op.vcpu, pieces)
        return tuple(Allowed(each.outcome, each.rule, read) for each in progress(op, pieces))

    def _mappable(self, op: PreFaultMemory) -> Iterator[Piece]:
        """Yield the pages of a range up to and including the first that is not memory."""
        for gpa in range(op.gpa, op.gpa + op.size, PAGE_SIZE_BYTES):
            (piece,) = self._backing.pieces(self._slots, gpa, PAGE_SIZE_BYTES)
            yield piece
            if piece.kind != "memory":
                return

    def pieces(self, gpa: int, length: int) -> tuple[Piece, ...]:
        """Return the pieces of a range of gpas."""
        return self._backing.pieces(self._slots, gpa, length)

    def reached(self, op: Touch | Sweep | Instruction, gpa: int, length: int) -> tuple[Piece, ...]:
        """Return the pieces of a range of gpas that an operation accesses."""
        emulated = self._emulates_real_mode and _is_real(op)
        return self._backing.pieces(self._slots, gpa, length, emulated)

    def read(self, pieces: Iterable[Piece]) -> bytes:
        """Return what the guest reads there; outside of memory, the answer to MMIO exits."""
        data = b""
        for piece in pieces:
            if piece.kind == "memory":
                data += self._contents.read(piece.mapping, piece.offset, piece.length)
            else:
                data += _FILL * piece.length
        return data

    def are_vague(self, pieces: Iterable[Piece]) -> bool:
        """Whether the content of some of it is unknown."""
        contents = self._contents
        return not contents.knows_all and any(
            piece.kind == "memory" and contents.is_vague(piece.mapping, piece.offset, piece.length)
            for piece in pieces
        )

    def blurred(self, vcpu: int, pieces: Iterable[Piece], *, surely: bool) -> None:
        """Make the content of writable pieces unknown, as by a write of unknown data.

        If not ``surely``, there may have been no write.
        """
        for piece in pieces:
            if piece.slot is not None and not leaves_memory(piece, write=True):
                self._slots.hit(piece.slot)
                self._contents.blur(piece.mapping, piece.offset, piece.length)
                page = piece.gpa // PAGE_SIZE_BYTES - piece.slot.base_gfn
                self._tracking.kernel_wrote(vcpu, piece.slot, page, surely=surely)

    def may_be_marked(self, pieces: Iterable[Piece]) -> None:
        """Make bytes unknown in which a processor may set a bit that it does not look at."""
        for piece in pieces:
            if piece.slot is not None and not leaves_memory(piece, write=True):
                self._contents.blur(piece.mapping, piece.offset, piece.length, is_aside=True)

    def was_read(self, vcpu: int, pieces: Iterable[Piece]) -> None:
        """Note which slots were looked up, and which pages may be logged because of the read."""
        for piece in pieces:
            if piece.slot is None:
                continue
            self._slots.hit(piece.slot)
            if self._reads_make_dirty and piece.kind == "memory":
                self._may_be_logged(vcpu, piece.slot, piece)

    def _was_begun(self, op: Touch, pieces: Iterable[Piece]) -> None:
        """Note that a vCPU stopped amid an access: what it reached may be mapped, and so logged."""
        self.was_read(op.vcpu, pieces)
        for piece in pieces:
            if op.access == "write" and piece.slot is not None and not leaves_memory(piece, True):
                self._may_be_logged(op.vcpu, piece.slot, piece)

    def _may_be_logged(self, vcpu: int, slot: Memslot, piece: Piece) -> None:
        self._tracking.read(vcpu, slot, piece.gpa // PAGE_SIZE_BYTES - slot.base_gfn)

    def was_walked(self, vcpu: int, piece: Piece) -> None:
        """Note that a page table entry was used: nested paging may log that as a write."""
        self.was_read(vcpu, (piece,))
        if piece.slot is not None:
            page = piece.gpa // PAGE_SIZE_BYTES - piece.slot.base_gfn
            self._tracking.read(vcpu, piece.slot, page)

    def written(
        self, op: Touch | Sweep | Instruction, pieces: Iterable[Piece], data: bytes
    ) -> None:
        """Write ``data`` where the pieces lie in writable memory, and mark those pages dirty."""
        at = 0
        for piece in pieces:
            if piece.slot is not None:
                self._slots.hit(piece.slot)
            if piece.kind == "memory" and not leaves_memory(piece, True):
                part = data[at : at + piece.length]
                self._contents.write(piece.mapping, piece.offset, part)
                slot = piece.slot
                if slot is not None and slot.dirty is not None:
                    page = piece.gpa // PAGE_SIZE_BYTES - slot.base_gfn
                    elements = -(-piece.length // op.width)
                    self._tracking.wrote(op.vcpu, slot, page, elements)
            at += piece.length


def _is_real(op: Touch | Sweep | Instruction) -> bool:
    """Whether a guest is in real mode for an access."""
    if isinstance(op, Instruction):
        return op.mode == "real"
    end = op.gpa + op.width if isinstance(op, Touch) else access_end(op)
    return end <= REAL_MODE_END


def _answered(op: Touch, pieces: tuple[Piece, ...], usual: Allowed) -> Allowed:
    """Return the outcome of a touch that the in-kernel I/O APIC may answer in part."""
    write = op.access == "write"
    asked = [each for each in pieces if leaves_memory(each, write) and answers(each)]
    outcome = usual.outcome
    if not asked or not isinstance(outcome, Touched):
        return usual
    data = _element(op.value, op.width) if write else None
    # The I/O APIC's registers begin at a page, so only the first piece can lie before them.
    exits = () if pieces[0] in asked else exits_of(pieces[:1], data)
    unknown = 0 if write else unknown_bits(op.gpa, asked)
    return Allowed(Touched(outcome.value & ~unknown, exits, unknown), IOAPIC, usual.adopt)


def _element(value: int, width: int) -> bytes:
    """Return the low ``width`` bytes of a value in memory order."""
    return (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _private_fault(op: Touch, piece: Piece) -> tuple[Allowed, ...]:
    """Return the outcomes of a touch of a private gpa that no guest_memfd backs."""
    rule = PRIVATE_FAULT
    fault = Allowed(private_fault(op.gpa & -PAGE_SIZE_BYTES, PAGE_SIZE_BYTES), rule)
    if piece.slot is not None:
        return (fault,)
    if op.access == "write":
        return (fault, Allowed(Touched(0, exits_of((piece,), _element(op.value, op.width))), rule))
    value = int.from_bytes(_FILL * op.width, "little")
    return (fault, Allowed(Touched(value, exits_of((piece,))), rule))


def leaves_memory(piece: Piece, write: bool) -> bool:
    """Whether an access to a piece does not reach memory, and so exits or fails."""
    return piece.kind != "memory" or (write and (piece.readonly or piece.protected))


def changed_bytes(pieces: Iterable[Piece]) -> int:
    """Return how many bytes of memory a write to the pieces changes."""
    return sum(piece.length for piece in pieces if not leaves_memory(piece, write=True))


def exits_of(pieces: Sequence[Piece], written: bytes | None = None) -> tuple[Mmio, ...]:
    """Return the MMIO exits of an access, adjacent ones joined; ``written`` is None for a read."""
    write = written is not None
    if len(pieces) == 1:  # The common case.
        piece = pieces[0]
        data = _FILL * piece.length if written is None else written[: piece.length]
        return (Mmio(piece.gpa, write, data),) if leaves_memory(piece, write) else ()
    exits: list[Mmio] = []
    at = 0
    for piece in pieces:
        if leaves_memory(piece, write):
            data = _FILL * piece.length if written is None else written[at : at + piece.length]
            if exits and exits[-1].gpa + len(exits[-1].data) == piece.gpa:
                exits[-1] = Mmio(exits[-1].gpa, write, exits[-1].data + data)
            else:
                exits.append(Mmio(piece.gpa, write, data))
        at += piece.length
    return tuple(exits)


def _may_fault(pieces: Iterable[Piece], write: bool) -> bool:
    """Whether an access faults in hardware because host memory is missing."""
    return any(faults(piece, write) for piece in pieces)


def faults(piece: Piece, write: bool) -> bool:
    """Whether an access to a piece faults in hardware because host memory is missing.

    A write to a READONLY slot exits before that.
    """
    is_denied = piece.kind == "absent" or (write and piece.protected)
    return is_denied and not (write and piece.readonly)


def _before_fault(
    pieces: tuple[Piece, ...], width: int, start_gpa: int, write: bool
) -> tuple[Piece, ...]:
    """Return the pieces of all whole elements before the first page without host memory."""
    fault = next(piece.gpa for piece in pieces if faults(piece, write))
    whole = (fault - start_gpa) // width * width
    kept: list[Piece] = []
    for piece in pieces:
        length = min(piece.length, start_gpa + whole - piece.gpa)
        if length > 0:
            kept.append(
                Piece(piece.gpa, length, piece.kind, piece.slot, piece.mapping, piece.offset)
            )
    return tuple(kept)


def _rule(pieces: tuple[Piece, ...], write: bool) -> Rule | None:
    """Return the rule that decides an access: that of its most unusual piece.

    None if the rules do not say which memory it reaches; REACH if all of it is done in memory.
    """
    if len(pieces) == 1:
        piece = pieces[0]
        if piece.kind == "hole":
            return HOLE
        if piece.kind == "memory" and not (piece.private or piece.protected):
            return READ_ONLY if write and piece.readonly else REACH
    kinds = {piece.kind for piece in pieces}
    if "unknown" in kinds:
        return None
    if "fault" in kinds:
        return PRIVATE_FAULT if len(pieces) == 1 else None
    if any(piece.private for piece in pieces):
        # An emulated access reaches the hva, whatever the attributes say.
        return PRIVATE if kinds == {"memory"} else None
    if "absent" in kinds:
        return HVA_ABSENT
    if write and any(piece.protected and not piece.readonly for piece in pieces):
        return HVA_WRITE_PROTECTED
    if "hole" in kinds:
        return HOLE if len(kinds) == 1 else STRADDLE
    if write and any(piece.readonly for piece in pieces):
        return READ_ONLY
    return REACH
