"""The outcomes of `Start`: a vCPU starts at an address that the scenario chooses."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from vmm.model.accesses import (
    CANNOT_FETCH,
    FETCH_OUTSIDE,
    REACH,
    Accesses,
    changed_bytes,
    exits_of,
    leaves_memory,
)
from vmm.model.allowed import Allowed
from vmm.model.apicpage import is_apic_page
from vmm.model.backing import HVA_ABSENT, Piece
from vmm.model.contents import Contents
from vmm.model.frames import call_frame, interrupt_frame, pushes
from vmm.model.instructions import NOT_EMULATED
from vmm.model.internal import InternalSlots
from vmm.model.pagetables import (
    GUEST_TABLES,
    PAGE_FAULT,
    READONLY_TABLES,
    TABLES_OUTSIDE,
    PageTables,
    Rewritten,
    Walk,
)
from vmm.model.rule import Rule, documented, source
from vmm.scenario.content import STUB_LENGTH, stub_identity
from vmm.scenario.history import Mmio, Stopped, Touched, joined
from vmm.scenario.operations import GUEST_MAPPING, PAGE_SIZE_BYTES, Start, Touch
from vmm.scenario.programs import (
    CODE_DESCRIPTOR,
    CODE_SELECTOR,
    ENTRY_BYTES,
    FAR_CALL,
    FAR_CALL_BYTES,
    FLAT_CODE_DESCRIPTOR,
    INTERRUPT,
    LOAD,
    LONG_FAR_CALL,
    LONG_FRAME_BYTES,
    LONG_GATE_BYTES,
    LONG_RETURN,
    POINTER_BYTES,
    PROGRAM_BYTES,
    REAL_FRAME_BYTES,
    REAL_GATE_BYTES,
    RETURN,
    SMM_HANDLER,
    SMM_RETURN,
    SMM_STATE,
    SMM_STATE_BYTES,
    STORE,
    VECTOR,
    copied_by,
    far_pointer,
    handler_of,
    remapped_by,
    return_frame,
)

INTERRUPT_TABLE = documented(
    "interrupt-table",
    "an interrupt goes where its table says, as the table's slot shows it now; what it pushes is "
    "written like any other data",
    "api.rst 4.35; Intel SDM vol. 3, 6.12, 20.1.4; emulate_int_real",
)

INTERRUPT_OUTSIDE = source(
    "interrupt-outside",
    "each word that an interrupt pushes outside memory exits; an interrupt that cannot be "
    "delivered, without its table or in 64-bit mode, is KVM_EXIT_INTERNAL_ERROR",
    "api.rst 5, KVM_EXIT_MMIO, KVM_EXIT_INTERNAL_ERROR; emulate_int_real; "
    "KVM_INTERNAL_ERROR_DELIVERY_EV",
)

SMM_ENTERED = source(
    "smm-entered",
    "a vCPU that gets an SMI saves its state to as_id 1, and runs the handler there; when that "
    "returns, the vCPU goes on in as_id 0 where it was",
    "api.rst 4.96; enter_smm, emulator_leave_smm; Intel SDM vol. 3, 32.4",
)

_WORD = 4
_STACK_ALIGNMENT = 16
_LONGEST = max(STUB_LENGTH, PROGRAM_BYTES)
_LAST_OFFSET = PAGE_SIZE_BYTES - _LONGEST

_Outcomes = tuple[Allowed, ...]


class Starts:
    """Predicts starts in one VM, and applies their effects."""

    def __init__(self, accesses: Accesses, contents: Contents, internal: InternalSlots) -> None:
        self._accesses = accesses
        self._contents = contents
        self._internal = internal
        self._tables = PageTables(accesses, contents)

    def outcomes(self, op: Start, smm: Accesses | None = None) -> _Outcomes:
        """Return the allowed outcomes of a start; none if they are unknown.

        ``smm`` is what a vCPU sees in SMM.
        """
        if self._internal.irqchip:
            return ()
        if op.smi:
            return () if smm is None else self._after_an_smi(op, smm)
        if op.tables is None:
            return self._at_code(op, op.address, ())
        walk = self._tables.walk(op.tables, op.address, write=False)
        return self._fault(op, walk) or self._at_code(op, walk.gpa, (walk,))

    def _after_an_smi(self, op: Start, smm: Accesses) -> _Outcomes:
        """Return the allowed outcomes of a start whose vCPU is first in SMM, and returns."""
        handler = smm.pieces(SMM_HANDLER, len(SMM_RETURN))
        state = smm.pieces(SMM_STATE, SMM_STATE_BYTES)
        if (
            any(self._is_unclear(op, piece) for piece in (*handler, *state))
            or any(leaves_memory(piece, write=True) for piece in state)
            or leaves_memory(handler[0], write=False)
            or smm.are_vague(handler)
            or smm.read(handler) != SMM_RETURN
        ):
            return ()
        return tuple(
            Allowed(
                each.outcome,
                SMM_ENTERED,
                partial(self._smi, op, smm, (handler, state), each.adopt),
                each.is_apart,
            )
            for each in self.outcomes(msgspec.structs.replace(op, smi=False))
        )

    def _smi(
        self,
        op: Start,
        smm: Accesses,
        used: tuple[tuple[Piece, ...], tuple[Piece, ...]],
        adopt: Callable[[], None],
    ) -> None:
        handler, state = used
        smm.blurred(op.vcpu, state, surely=True)
        smm.was_read(op.vcpu, handler)
        adopt()

    def _fault(self, op: Start, walk: Walk) -> _Outcomes:
        """Return how a walk stops the vCPU; none if it does not, or if that is unknown."""
        match walk.end:
            case "page-fault":
                return (Allowed(Stopped("shutdown"), PAGE_FAULT),)
            case "outside":
                return _stops(TABLES_OUTSIDE)
            case _:
                return ()

    def _at_code(self, op: Start, gpa: int, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return the allowed outcomes of the code at a gpa."""
        if any(walk.end != "memory" for walk in walks):
            return ()
        (piece,) = self._accesses.pieces(gpa, 1)
        if self._is_unclear(op, piece):
            return ()
        if piece.kind != "memory":
            if not _is_settled(walks):
                return ()
            return _stops(FETCH_OUTSIDE if piece.kind == "hole" else HVA_ABSENT)
        if gpa % PAGE_SIZE_BYTES > _LAST_OFFSET:
            return ()
        (piece,) = self._accesses.pieces(gpa, _LONGEST)
        if self._accesses.are_vague((piece,)):
            return ()
        code = self._contents.read(piece.mapping, piece.offset, piece.length)
        identity = stub_identity(code[:STUB_LENGTH])
        if identity is not None:
            return self._allowed(op, Touched(identity), walks, (piece,))
        if code.startswith(INTERRUPT) and op.interrupts is not None:
            return self._interrupt(op, piece, walks)
        if code.startswith(LONG_RETURN if op.tables is not None else RETURN):
            return self._return(op, piece, walks)
        if op.tables is None and code.startswith(FAR_CALL) and op.interrupts is not None:
            return self._far_call(op, piece, code)
        if op.tables is None:
            return ()
        return self._at_program(op, piece, code, walks)

    def _at_program(
        self, op: Start, piece: Piece, code: bytes, walks: tuple[Walk, ...]
    ) -> _Outcomes:
        """Return the allowed outcomes of a program that accesses data in 64-bit mode."""
        if code.startswith(LOAD):
            return self._load(op, piece, walks)
        if code.startswith(STORE):
            return self._store(op, piece, walks)
        if code.startswith(LONG_FAR_CALL) and op.interrupts is not None:
            return self._long_far_call(op, walks)
        if (address := remapped_by(code)) is not None:
            return self._remap(op, address, piece, walks)
        if (address := copied_by(code)) is not None:
            return self._copy(op, address, piece, walks)
        return ()

    def _interrupt(self, op: Start, code: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return the allowed outcomes of an interrupt.

        They are known if its handler is in memory, or if no memory holds its table. Other
        combinations are not modelled.
        """
        is_long = op.tables is not None
        size = LONG_GATE_BYTES if is_long else REAL_GATE_BYTES
        frame = interrupt_frame(op)
        at = (op.stack & -_STACK_ALIGNMENT if is_long else op.stack) - len(frame)
        assert op.interrupts is not None
        gate = self._memory(op, op.interrupts + VECTOR * size, size)
        stack = self._memory(op, at, len(frame), write=True)
        descriptor = self._memory(op, op.interrupts + CODE_SELECTOR, ENTRY_BYTES)
        if gate is None or stack is None or descriptor is None:
            return ()
        tables = (gate, descriptor) if is_long else (gate,)
        if any(each.is_outside for each in tables) or (is_long and stack.is_outside):
            return self._undelivered((*walks, *(walk for each in tables for walk in each.walks)))
        handler = handler_of(self._accesses.read(gate.pieces))
        is_code = self._accesses.read(descriptor.pieces) == CODE_DESCRIPTOR.to_bytes(8, "little")
        if handler is None or (is_long and not is_code):
            return ()
        found = self._memory(op, handler, STUB_LENGTH)
        identity = None if found is None else stub_identity(self._accesses.read(found.pieces))
        if found is None or found.is_outside or identity is None:
            return ()
        used = (gate, descriptor, stack, found) if is_long else (gate, stack, found)
        every = (*walks, *(walk for each in used for walk in each.walks))
        if any(walk.reads_only for walk in every):
            return ()
        effect = partial(self._interrupted, op, every, used, frame, stack)
        if stack.is_outside:
            exits = pushes(stack.pieces[0].gpa, frame)
            pushed = Allowed(Touched(identity, exits), INTERRUPT_OUTSIDE, effect)
            return (pushed, Allowed(Stopped("internal-error"), INTERRUPT_OUTSIDE))
        outcome = Allowed(Touched(identity), INTERRUPT_TABLE, effect)
        if not is_long:
            return (outcome,)
        if not _is_settled(every):
            return ()
        return (outcome, Allowed(Stopped("internal-error"), NOT_EMULATED, is_apart=True))

    def _return(self, op: Start, code: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return the outcomes of an iret whose stack and target are in memory.

        What else there may be on the stack than a plain return to code is not followed.
        """
        is_long = op.tables is not None
        if op.interrupts is None:
            return ()
        size = LONG_FRAME_BYTES if is_long else REAL_FRAME_BYTES
        stack = self._memory(op, op.stack, size)
        descriptor = self._memory(op, op.interrupts + CODE_SELECTOR, ENTRY_BYTES)
        if stack is None or stack.is_outside or (is_long and _is_outside(descriptor)):
            return ()
        frame = self._accesses.read(stack.pieces)
        target = int.from_bytes(frame[:8], "little") if is_long else handler_of(frame[:4])
        if target is None or frame != return_frame(target, is_long=is_long):
            return ()
        used: tuple[_Data, ...] = (stack,)
        if is_long:
            assert descriptor is not None
            held = self._accesses.read(descriptor.pieces)
            if held != CODE_DESCRIPTOR.to_bytes(8, "little"):
                return ()
            used = (stack, descriptor)
        reached = self._reached(op, target, walks, used)
        if reached is None:
            return ()
        identity, every, used = reached
        effect = partial(self._read_all, op, every, used)
        outcome = Allowed(Touched(identity), INTERRUPT_TABLE, effect)
        if not is_long:
            return (outcome,)
        if not _is_settled(every):
            return ()
        return (outcome, Allowed(Stopped("internal-error"), NOT_EMULATED))

    def _far_call(self, op: Start, code: Piece, held: bytes) -> _Outcomes:
        """Return the outcomes of a far call whose stack and target are in memory."""
        frame = call_frame(op)
        target = handler_of(held[len(FAR_CALL) : FAR_CALL_BYTES])
        stack = self._memory(op, op.stack - len(frame), len(frame), write=True)
        if target is None or stack is None or stack.is_outside:
            return ()
        reached = self._reached(op, target, (), (stack,))
        if reached is None:
            return ()
        identity, every, used = reached
        effect = partial(self._interrupted, op, every, used, frame, stack)
        return (Allowed(Touched(identity), INTERRUPT_TABLE, effect),)

    def _long_far_call(self, op: Start, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return the outcomes of a far call through memory; its descriptor may cross pages."""
        assert op.interrupts is not None
        frame = call_frame(op)
        pointer = self._memory(op, op.data, POINTER_BYTES)
        stack = self._memory(op, op.stack - len(frame), len(frame), write=True)
        descriptor = self._descriptor(op, op.interrupts + CODE_SELECTOR)
        if stack is None or any(_is_outside(each) for each in (stack, pointer, descriptor)):
            return ()
        assert pointer is not None
        assert descriptor is not None
        held = self._accesses.read(pointer.pieces)
        target = int.from_bytes(held[:_WORD], "little")
        code = self._accesses.read(descriptor.pieces)
        is_code = code == FLAT_CODE_DESCRIPTOR.to_bytes(ENTRY_BYTES, "little")
        if held != far_pointer(target) or not is_code:
            return ()
        reached = self._reached(op, target, walks, (pointer, descriptor, stack))
        if reached is None:
            return ()
        identity, every, used = reached
        effect = partial(self._interrupted, op, every, used, frame, stack)
        return (Allowed(Touched(identity), INTERRUPT_TABLE, effect),)

    def _descriptor(self, op: Start, address: int) -> "_Data | None":
        """Return a descriptor, which may cross pages."""
        first = min(ENTRY_BYTES, PAGE_SIZE_BYTES - address % PAGE_SIZE_BYTES)
        if first == ENTRY_BYTES:
            return self._memory(op, address, first)
        begin = self._memory(op, address, first)
        end = self._memory(op, address + first, ENTRY_BYTES - first)
        if begin is None or end is None:
            return None
        is_outside = begin.is_outside or end.is_outside
        return _Data(begin.walks + end.walks, begin.pieces + end.pieces, is_outside)

    def _reached(
        self, op: Start, target: int, walks: tuple[Walk, ...], used: tuple["_Data", ...]
    ) -> "tuple[int, tuple[Walk, ...], tuple[_Data, ...]] | None":
        """Return the identity of the code at a target, all walks, and all that is used."""
        found = self._memory(op, target, STUB_LENGTH)
        if found is None or found.is_outside:
            return None
        identity = stub_identity(self._accesses.read(found.pieces))
        every = (*walks, *(walk for each in (*used, found) for walk in each.walks))
        if identity is None or any(walk.reads_only for walk in every):
            return None
        return identity, every, (*used, found)

    def _read_all(self, op: Start, walks: tuple[Walk, ...], used: tuple["_Data", ...]) -> None:
        self._tables.adopt(op.vcpu, walks, sets_bits=True)
        for each in used:
            self._accesses.was_read(op.vcpu, each.pieces)

    def _undelivered(self, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return how an interrupt stops the vCPU; what it has pushed by then is unknown."""
        if not _is_settled(walks):
            return ()
        return (Allowed(Stopped("internal-error"), INTERRUPT_OUTSIDE, is_apart=True),)

    def _interrupted(
        self,
        op: Start,
        walks: tuple[Walk, ...],
        used: tuple["_Data", ...],
        frame: bytes,
        stack: "_Data",
    ) -> None:
        self._tables.adopt(op.vcpu, walks, sets_bits=True)
        for each in used:
            if each is not stack:
                self._accesses.was_read(op.vcpu, each.pieces)
        top = Touch(stack.pieces[0].gpa, "write", 2, vcpu=op.vcpu)
        self._accesses.written(top, stack.pieces, frame)

    def _memory(self, op: Start, address: int, length: int, write: bool = False) -> "_Data | None":
        """Return what is at an address, memory or a hole; None if it is unknown."""
        if address % PAGE_SIZE_BYTES + length > PAGE_SIZE_BYTES:
            return None
        walks: tuple[Walk, ...] = ()
        gpa = address
        if op.tables is not None:
            walks = (self._tables.walk(op.tables, address, write),)
            if walks[0].end != "memory":
                return None
            gpa = walks[0].gpa
        pieces = self._accesses.pieces(gpa, length)
        (piece,) = pieces
        if piece.kind == "absent" or piece.protected or self._is_unclear(op, piece):
            return None
        if self._accesses.are_vague(pieces):
            return None
        return _Data(walks, pieces, leaves_memory(piece, write))

    def _load(self, op: Start, code: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        found = self._data(op, write=False)
        if not isinstance(found, _Data):
            return found if _is_settled(walks) else ()
        pieces = found.pieces
        value = int.from_bytes(self._accesses.read(pieces), "little")
        exits = exits_of(pieces)
        return self._allowed(op, Touched(value, exits), (*walks, *found.walks), (code, *pieces))

    def _store(self, op: Start, code: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        found = self._data(op, write=True)
        if not isinstance(found, _Data):
            return found if _is_settled(walks) else ()
        pieces = found.pieces
        data = op.value.to_bytes(_WORD, "little")
        (piece,) = pieces
        kept = not leaves_memory(piece, write=True)
        held = data if kept else self._accesses.read(pieces)
        exits: list[Mmio] = [*exits_of(pieces, data), *exits_of(pieces)]
        outcome = Touched(int.from_bytes(held, "little"), joined(exits))
        return self._allowed(op, outcome, (*walks, *found.walks), (code,), pieces)

    def _remap(self, op: Start, address: int, code: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return what a guest reads at an address right after it has mapped that to another gpa.

        It is known where the entry that it writes is the last one on the way to the address.
        """
        at = self._data(op, write=True)
        if not isinstance(at, _Data) or not self._accesses.is_alone(op.vcpu):
            return ()
        (entry,) = at.pieces
        before = (*walks, *at.walks)
        if leaves_memory(entry, write=True) or entry.offset % ENTRY_BYTES:
            return ()
        upper = self._contents.read(entry.mapping, entry.offset + _WORD, _WORD)
        value = int.from_bytes(upper, "little") << 8 * _WORD | op.value
        rewritten = Rewritten(entry.mapping, entry.offset, value)
        if any(rewritten.is_at(each.entry) for walk in before for each in walk.updates):
            return ()
        found = self._data(op, False, address, rewritten)
        if not isinstance(found, _Data) or not rewritten.is_at(found.walks[0].updates[-1].entry):
            return ()
        if any(walk.reads_only for walk in (*before, *found.walks)):
            return ()
        if any(_share_a_page(entry, piece) for piece in found.pieces):
            return ()
        answer = int.from_bytes(self._accesses.read(found.pieces), "little")
        effect = partial(self._remapped, op, before, (code, *found.pieces), at, found)
        return (Allowed(Touched(answer, exits_of(found.pieces)), GUEST_TABLES, effect),)

    def _remapped(
        self,
        op: Start,
        before: tuple[Walk, ...],
        read: tuple[Piece, ...],
        at: "_Data",
        found: "_Data",
    ) -> None:
        self._run(op, before, read, at.pieces, True)
        self._tables.adopt(op.vcpu, found.walks, sets_bits=True)

    def _copy(self, op: Start, address: int, code: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return what a guest reads after it has copied a word from an address."""
        source, target = self._data(op, False, address), self._data(op, write=True)
        if not isinstance(source, _Data) or not isinstance(target, _Data):
            return ()
        copied = self._accesses.read(source.pieces)
        (piece,) = target.pieces
        kept = not leaves_memory(piece, write=True)
        held = copied if kept else self._accesses.read(target.pieces)
        exits = (
            *exits_of(source.pieces),
            *exits_of(target.pieces, copied),
            *exits_of(target.pieces),
        )
        outcome = Touched(int.from_bytes(held, "little"), joined(exits))
        every = (*walks, *source.walks, *target.walks)
        writing = msgspec.structs.replace(op, value=int.from_bytes(copied, "little"))
        return self._allowed(writing, outcome, every, (code, *source.pieces), target.pieces)

    def _data(
        self,
        op: Start,
        write: bool,
        address: int | None = None,
        rewritten: Rewritten | None = None,
    ) -> "_Outcomes | _Data":
        """Return the word that a program accesses, or how the vCPU stops there."""
        assert op.tables is not None
        at = op.data if address is None else address
        if at % PAGE_SIZE_BYTES > PAGE_SIZE_BYTES - _WORD:
            return ()
        walk = self._tables.walk(op.tables, at, write, rewritten)
        if walk.end != "memory":
            return self._fault(op, walk)
        pieces = self._accesses.pieces(walk.gpa, _WORD)
        (piece,) = pieces
        if self._is_unclear(op, piece) or piece.kind == "absent" or piece.protected:
            return ()
        if leaves_memory(piece, write) and walk.sets_bits:
            return ()  # If KVM has cached the address as MMIO, it does not walk.
        return _Data((walk,), pieces)

    def _allowed(
        self,
        op: Start,
        outcome: Touched,
        walks: tuple[Walk, ...],
        read: tuple[Piece, ...],
        written: tuple[Piece, ...] = (),
    ) -> _Outcomes:
        """Return an outcome with its effects: walks, what was fetched or read, a written word."""
        if not walks:
            return (Allowed(outcome, REACH, partial(self._run, op, walks, read, written, False)),)
        if not any(walk.reads_only for walk in walks):
            effect = partial(self._run, op, walks, read, written, True)
            return (Allowed(outcome, GUEST_TABLES, effect),)
        if any(each.is_new and not each.entry.readonly for walk in walks for each in walk.updates):
            return ()
        usual = Allowed(
            outcome, READONLY_TABLES, partial(self._run, op, walks, read, written, False)
        )
        is_apart = changed_bytes(written) > 0
        return (usual, *_stops(READONLY_TABLES, is_apart))

    def _run(
        self,
        op: Start,
        walks: tuple[Walk, ...],
        read: tuple[Piece, ...],
        written: tuple[Piece, ...],
        sets_bits: bool,
    ) -> None:
        self._tables.adopt(op.vcpu, walks, sets_bits)
        self._accesses.was_read(op.vcpu, read)
        if written:
            data = op.value.to_bytes(_WORD, "little")
            word = Touch(written[0].gpa, "write", 4, op.value, op.vcpu)
            self._accesses.written(word, written, data)

    def _is_unclear(self, op: Start, piece: Piece) -> bool:
        """Whether the rules do not say what is at a piece."""
        return (
            piece.kind in ("unknown", "fault")
            or piece.private
            or piece.mapping == GUEST_MAPPING
            or is_apic_page(piece.gpa, piece.gpa + piece.length)
            or self._internal.reached(op.vcpu, piece.gpa, piece.length)
        )


@dataclass(frozen=True, slots=True)
class _Data:
    """What a program or an interrupt accesses, and the walk that led there."""

    walks: tuple[Walk, ...]
    pieces: tuple[Piece, ...]
    is_outside: bool = False
    """Whether the access does not reach memory."""


def _is_outside(data: _Data | None) -> bool:
    return data is None or data.is_outside


def _share_a_page(one: Piece, other: Piece) -> bool:
    return one.mapping == other.mapping and (
        one.offset // PAGE_SIZE_BYTES == other.offset // PAGE_SIZE_BYTES
    )


def _is_settled(walks: tuple[Walk, ...]) -> bool:
    """Whether no walk sets a bit; if a walk is stopped, it is unknown which ones are set."""
    return not any(walk.sets_bits for walk in walks)


def _stops(rule: Rule, is_apart: bool = False) -> _Outcomes:
    return tuple(Allowed(Stopped(reason), rule, is_apart=is_apart) for reason in CANNOT_FETCH)
