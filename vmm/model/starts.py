"""The outcomes of `Start`: a vCPU starts at an address that the scenario chooses."""

from collections.abc import Callable
from functools import partial
from typing import TypeGuard

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
from vmm.model.backing import HVA_ABSENT, Piece
from vmm.model.contents import Contents
from vmm.model.guestmemory import Data, GuestMemory
from vmm.model.internal import InternalSlots
from vmm.model.pagetables import (
    GUEST_TABLES,
    PAGE_FAULT,
    READONLY_TABLES,
    TABLES_OUTSIDE,
    Rewritten,
    Update,
    Walk,
    is_settled,
)
from vmm.model.rule import Rule, source
from vmm.model.transfers import Transfers
from vmm.scenario.content import STUB_LENGTH, stub_identity
from vmm.scenario.history import AnyOutcome, Mmio, Stopped, Touched, joined
from vmm.scenario.operations import PAGE_SIZE_BYTES, SMBASE, Start, Touch
from vmm.scenario.paging import KINDS
from vmm.scenario.programs import (
    ENTRY_BYTES,
    FAR_CALL,
    INTERRUPT,
    LOAD,
    LONG_FAR_CALL,
    LONG_RETURN,
    PROGRAM_BYTES,
    RETURN,
    SMM_HANDLER_OFFSET,
    SMM_RETURN,
    SMM_STATE_BYTES,
    SMM_STATE_OFFSET,
    SMM_STORE_BYTES,
    STORE,
    copied_by,
    remapped_by,
    smm_stored_by,
)

SMM_ENTERED = source(
    "smm-entered",
    "a vCPU that gets an SMI saves its state to as_id 1, and runs the handler there; when that "
    "returns, the vCPU goes on in as_id 0 where it was",
    "api.rst 4.96; enter_smm, emulator_leave_smm; Intel SDM vol. 3, 32.4",
)

_NO_PROGRAM = "its code is none of the scenario's programs: something was written over it"
_WORD = 4
_LONGEST = max(STUB_LENGTH, PROGRAM_BYTES)
_LAST_OFFSET = PAGE_SIZE_BYTES - _LONGEST

_Outcomes = tuple[Allowed, ...]


class Starts:
    """Predicts starts in one VM, and applies their effects."""

    def __init__(self, accesses: Accesses, contents: Contents, internal: InternalSlots) -> None:
        self._accesses = accesses
        self._contents = contents
        self._internal = internal
        self._memory = GuestMemory(accesses, contents, internal)
        self._tables = self._memory.tables
        self._transfers = Transfers(self._memory)
        self._noted: list[str] | None = None
        """Why an outcome is unknown, while that is asked for."""

    def outcomes(self, op: Start, smm: Accesses | None = None) -> _Outcomes:
        """Return the allowed outcomes of a start; none if they are unknown.

        ``smm`` is what a vCPU sees in SMM.
        """
        if self._internal.irqchip:
            return self._unknown("an interrupt controller of the kernel's may interrupt it")
        if op.smi:
            return () if smm is None else self._after_an_smi(op, smm)
        if op.tables is None:
            return self._at_code(op, op.address, ())
        walk = self._tables.walk(op.tables, op.address, write=False, paging=KINDS[op.paging])
        found = self._fault(op, walk) or self._at_code(op, walk.gpa, (walk,))
        return tuple(map(partial(self._after_walks, op, op.tables), found))

    def why_unknown(self, op: Start, smm: Accesses | None = None) -> str:
        """Return why a start has no known outcome."""
        self._noted = []
        self.outcomes(op, smm)
        noted, self._noted = self._noted, None
        return noted[-1] if noted else "what its page tables, code or data come to is not settled"

    def _unknown(self, why: str) -> _Outcomes:
        """Return no outcome, and note why."""
        if self._noted is not None:
            self._noted.append(why)
        return ()

    def _after_walks(self, op: Start, tables: int, allowed: Allowed) -> Allowed:
        """Return an outcome that, if the vCPU stops, may have walked to any of its addresses.

        Nested paging takes each use of an entry for a write, whatever the walk comes to.
        """
        if not isinstance(allowed.outcome, Stopped):
            return allowed

        def walked() -> None:
            for address in (op.address, op.data, op.stack, op.stack - 1, op.interrupts or 0):
                self._tables.tried(op.vcpu, tables, address, KINDS[op.paging])

        return allowed.followed_by(walked)

    def _after_an_smi(self, op: Start, smm: Accesses) -> _Outcomes:
        """Return the allowed outcomes of a start whose vCPU is first in SMM, and returns."""
        handler = smm.pieces(op.smbase + SMM_HANDLER_OFFSET, SMM_STORE_BYTES)
        state = smm.pieces(op.smbase + SMM_STATE_OFFSET, SMM_STATE_BYTES)
        if (
            any(self._memory.is_unclear(op, piece) for piece in (*handler, *state))
            or any(leaves_memory(piece, write=True) for piece in state)
            or any(leaves_memory(piece, write=False) for piece in handler)
            or smm.are_vague(handler)
        ):
            return ()
        code = smm.read(handler)
        stored: tuple[Piece, ...] = ()
        data = b""
        if (store := smm_stored_by(code)) is not None:
            gpa, value = store
            stored, data = smm.pieces(gpa, _WORD), value.to_bytes(_WORD, "little")
            if not self._is_aside(op, stored, (*handler, *state)):
                return ()
        elif not code.startswith(SMM_RETURN):
            return ()
        exits = exits_of(stored, data) if stored else ()
        usual = self.outcomes(msgspec.structs.replace(op, smi=False, smbase=SMBASE))
        if exits and not all(isinstance(each.outcome, Touched) for each in usual):
            return ()
        effect = partial(self._smi, op, smm, (handler, state, stored), data)
        return tuple(
            Allowed(
                _with_exits(exits, each.outcome),
                SMM_ENTERED,
                partial(effect, each.adopt),
                each.is_apart,
            )
            for each in usual
        )

    def _is_aside(self, op: Start, stored: tuple[Piece, ...], used: tuple[Piece, ...]) -> bool:
        """Whether what a handler writes is one word, and in no page that its vCPU uses besides."""
        (code,) = self._accesses.pieces(op.address, 1)
        return (
            len(stored) == 1
            and op.interrupts is None
            and stored[0].kind in ("memory", "hole")
            and not stored[0].protected
            and not self._memory.is_unclear(op, stored[0])
            and not any(_share_a_page(stored[0], piece) for piece in (code, *used))
        )

    def _smi(
        self,
        op: Start,
        smm: Accesses,
        pieces: tuple[tuple[Piece, ...], tuple[Piece, ...], tuple[Piece, ...]],
        data: bytes,
        adopt: Callable[[], None],
    ) -> None:
        handler, state, stored = pieces
        smm.blurred(op.vcpu, state, surely=True)
        smm.was_read(op.vcpu, handler)
        if stored:
            value = int.from_bytes(data, "little")
            smm.written(Touch(stored[0].gpa, "write", 4, value, op.vcpu), stored, data)
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
        if self._memory.is_unclear(op, piece):
            return ()
        if piece.kind != "memory":
            if not is_settled(walks):
                return ()
            return _stops(FETCH_OUTSIDE if piece.kind == "hole" else HVA_ABSENT)
        if gpa % PAGE_SIZE_BYTES > _LAST_OFFSET:
            return ()
        (piece,) = self._accesses.pieces(gpa, _LONGEST)
        if self._accesses.are_vague((piece,)):
            return ()
        found = self._by_code(op, piece, walks)
        return tuple(map(partial(self._after_fetching, op, piece), found))

    def _after_fetching(self, op: Start, code: Piece, allowed: Allowed) -> Allowed:
        """Return an outcome before which the vCPU has read its code."""

        def adopt() -> None:
            self._accesses.was_read(op.vcpu, (code,))
            allowed.adopt()

        return msgspec.structs.replace(allowed, adopt=adopt)

    def _by_code(self, op: Start, piece: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return the allowed outcomes of the code in a piece of memory."""
        code = self._contents.read(piece.mapping, piece.offset, piece.length)
        identity = stub_identity(code[:STUB_LENGTH])
        if identity is not None:
            return self._allowed(op, Touched(identity), walks, (piece,))
        is_wide = op.paging == "long"  # Or in real mode.
        if code.startswith(INTERRUPT) and op.interrupts is not None:
            return self._transfers.interrupt(op, walks)
        if code.startswith(LONG_RETURN if op.tables is not None else RETURN) and is_wide:
            return self._transfers.iret(op, walks)
        if op.tables is None and code.startswith(FAR_CALL) and op.interrupts is not None:
            return self._transfers.far_call(op, code)
        if op.tables is None:
            return self._unknown(_NO_PROGRAM)
        return self._at_program(op, piece, code, walks)

    def _at_program(
        self, op: Start, piece: Piece, code: bytes, walks: tuple[Walk, ...]
    ) -> _Outcomes:
        """Return the allowed outcomes of a program that accesses data through page tables."""
        if code.startswith(LOAD):
            return self._load(op, piece, walks)
        if code.startswith(STORE):
            return self._store(op, piece, walks)
        if op.paging != "long":
            return self._unknown("in 32-bit mode its code is another program")
        if code.startswith(LONG_FAR_CALL) and op.interrupts is not None:
            return self._transfers.long_far_call(op, walks)
        if addresses := remapped_by(code):
            return self._remap(op, addresses, piece, walks)
        if (address := copied_by(code)) is not None:
            return self._copy(op, address, piece, walks)
        return self._unknown(_NO_PROGRAM)

    def _load(self, op: Start, code: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        found = self._data(op, write=False)
        if not isinstance(found, Data):
            return found if is_settled(walks) else ()
        pieces = found.pieces
        value = int.from_bytes(self._accesses.read(pieces), "little")
        exits = exits_of(pieces)
        return self._allowed(op, Touched(value, exits), (*walks, *found.walks), (code, *pieces))

    def _store(self, op: Start, code: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        found = self._data(op, write=True)
        if not isinstance(found, Data):
            return found if is_settled(walks) else ()
        pieces = found.pieces
        data = op.value.to_bytes(_WORD, "little")
        (piece,) = pieces
        kept = not leaves_memory(piece, write=True)
        held = data if kept else self._accesses.read(pieces)
        exits: list[Mmio] = [*exits_of(pieces, data), *exits_of(pieces)]
        outcome = Touched(int.from_bytes(held, "little"), joined(exits))
        return self._allowed(op, outcome, (*walks, *found.walks), (code,), pieces)

    def _remap(
        self, op: Start, addresses: tuple[int, ...], code: Piece, walks: tuple[Walk, ...]
    ) -> _Outcomes:
        """Return what a guest reads last, at addresses that it has just mapped to another gpa.

        It is known where what it writes is in an entry on the way to each, at any level.
        """
        at = self._words(op, len(addresses))
        if at is None or not self._accesses.is_alone(op.vcpu):
            return ()
        before = (*walks, *at.walks)
        rewritten = self._rewriting(op, at.pieces)
        if any(self._changes(rewritten, each) for walk in before for each in walk.updates):
            return ()
        found = [self._data(op, False, each, rewritten) for each in addresses]
        if not _are_all_data(found):
            return ()
        after = tuple(walk for each in found for walk in each.walks)
        entries = [[update.entry for update in walk.updates] for walk in after]
        if not all(any(map(rewritten.is_in, each)) for each in entries):
            return ()
        if any(walk.reads_only for walk in (*before, *after)):
            return ()
        pieces = tuple(piece for each in found for piece in each.pieces)
        changed = (*at.pieces, *(each.entry for walk in (*before, *after) for each in walk.updates))
        if any(_overlap(each, piece) for each in changed for piece in pieces):
            return ()
        answer = int.from_bytes(self._accesses.read(found[-1].pieces), "little")
        exits = joined(mmio for each in found for mmio in exits_of(each.pieces))
        upper = [each for way in entries for each in way[:-1] if rewritten.is_in(each)]
        kept = tuple((each, self._tables.cached(each)) for each in upper)
        effect = partial(self._remapped, op, (before, after), (code, *pieces), at.pieces, kept)
        return (Allowed(Touched(answer, exits), GUEST_TABLES, effect),)

    def _words(self, op: Start, count: int) -> Data | None:
        """Return the words that a program writes to adjacent entries, all in memory of a page."""
        found = [self._data(op, True, op.data + n * ENTRY_BYTES) for n in range(count)]
        if not _are_all_data(found):
            return None
        pieces = tuple(piece for each in found for piece in each.pieces)
        if any(leaves_memory(piece, write=True) for piece in pieces):
            self._unknown("it changes its page tables where it cannot write")
            return None
        first = pieces[0]
        for n, piece in enumerate(pieces):
            if not _share_a_page(first, piece) or piece.offset != first.offset + n * ENTRY_BYTES:
                return None
        return Data(tuple(walk for each in found for walk in each.walks), pieces)

    def _rewriting(self, op: Start, words: tuple[Piece, ...]) -> Rewritten:
        """Return what memory holds once a program has written its word to adjacent entries."""
        data = bytearray()
        for piece in words:
            begin = words[0].offset + len(data)
            data += self._contents.read(piece.mapping, begin, piece.offset - begin)
            data += op.value.to_bytes(_WORD, "little")
        return Rewritten(words[0].mapping, words[0].offset, bytes(data))

    def _changes(self, rewritten: Rewritten, update: Update) -> bool:
        """Whether a guest changes an entry that it has just used."""
        entry = update.entry
        held = self._contents.read(entry.mapping, entry.offset, ENTRY_BYTES)
        return rewritten.is_in(entry) and (
            update.is_new or rewritten.laid_over(entry, held) != held
        )

    def _remapped(
        self,
        op: Start,
        walks: tuple[tuple[Walk, ...], tuple[Walk, ...]],
        read: tuple[Piece, ...],
        written: tuple[Piece, ...],
        kept: tuple[tuple[Piece, bytes], ...],
    ) -> None:
        before, after = walks
        for piece in written:
            self._run(op, before, read, (piece,), True)
        self._tables.adopt(op.vcpu, after, sets_bits=True, kept=kept)

    def _copy(self, op: Start, address: int, code: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return what a guest reads after it has copied a word from an address."""
        source, target = self._data(op, False, address), self._data(op, write=True)
        if not isinstance(source, Data) or not isinstance(target, Data):
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
    ) -> _Outcomes | Data:
        """Return the word that a program accesses, or how the vCPU stops there."""
        assert op.tables is not None
        at = op.data if address is None else address
        if at % PAGE_SIZE_BYTES > PAGE_SIZE_BYTES - _WORD:
            return ()
        walk = self._tables.walk(op.tables, at, write, rewritten, KINDS[op.paging])
        if walk.end != "memory":
            return self._fault(op, walk)
        pieces = self._accesses.pieces(walk.gpa, _WORD)
        (piece,) = pieces
        if self._memory.is_unclear(op, piece) or piece.kind == "absent" or piece.protected:
            return ()
        if leaves_memory(piece, write) and (walk.sets_bits or self._tables.is_marked(walk)):
            return ()  # If KVM has cached the address as MMIO, it does not walk.
        return Data((walk,), pieces)

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


def _are_all_data(found: list[_Outcomes | Data]) -> TypeGuard[list[Data]]:
    return all(isinstance(each, Data) for each in found)


def _share_a_page(one: Piece, other: Piece) -> bool:
    return one.mapping == other.mapping and (
        one.offset // PAGE_SIZE_BYTES == other.offset // PAGE_SIZE_BYTES
    )


def _overlap(one: Piece, other: Piece) -> bool:
    begin, end = other.offset, other.offset + other.length
    return one.mapping == other.mapping and one.offset < end and begin < one.offset + one.length


def _with_exits(exits: tuple[Mmio, ...], outcome: AnyOutcome) -> AnyOutcome:
    """Return an outcome before which a vCPU has exited."""
    if not exits or not isinstance(outcome, Touched):
        return outcome
    return msgspec.structs.replace(outcome, mmio=joined((*exits, *outcome.mmio)))


def _stops(rule: Rule, is_apart: bool = False) -> _Outcomes:
    return tuple(Allowed(Stopped(reason), rule, is_apart=is_apart) for reason in CANNOT_FETCH)
