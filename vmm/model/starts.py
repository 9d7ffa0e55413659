"""What a vCPU comes to that goes on at an address of the scenario's own."""

from dataclasses import dataclass
from functools import partial

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
from vmm.model.internal import InternalSlots
from vmm.model.pagetables import (
    GUEST_TABLES,
    PAGE_FAULT,
    READONLY_TABLES,
    TABLES_OUTSIDE,
    PageTables,
    Walk,
)
from vmm.model.rule import Rule
from vmm.scenario.content import STUB_LENGTH, stub_identity
from vmm.scenario.history import Mmio, Stopped, Touched, joined
from vmm.scenario.operations import GUEST_MAPPING, PAGE_SIZE_BYTES, Start, Touch
from vmm.scenario.programs import LOAD, STORE

_WORD = 4
_LONGEST = max(STUB_LENGTH, len(STORE))
_LAST_OFFSET = PAGE_SIZE_BYTES - _LONGEST

_Outcomes = tuple[Allowed, ...]


class Starts:
    """Predicts starts in one VM, and carries their effects out."""

    def __init__(self, accesses: Accesses, contents: Contents, internal: InternalSlots) -> None:
        self._accesses = accesses
        self._contents = contents
        self._internal = internal
        self._tables = PageTables(accesses, contents)

    def outcomes(self, op: Start) -> _Outcomes:
        """Return what a start may come to; none where that is not known."""
        if self._internal.irqchip:
            return ()
        if op.tables is None:
            return self._at_code(op, op.address, ())
        walk = self._tables.walk(op.tables, op.address, write=False)
        return self._fault(op, walk) or self._at_code(op, walk.gpa, (walk,))

    def _fault(self, op: Start, walk: Walk) -> _Outcomes:
        """Return how a walk stops the vCPU; none where it does not, or where that is not known."""
        match walk.end:
            case "page-fault":
                return (Allowed(Stopped("shutdown"), PAGE_FAULT),)
            case "outside":
                return _stops(TABLES_OUTSIDE)
            case _:
                return ()

    def _at_code(self, op: Start, gpa: int, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return what the code at a gpa comes to."""
        if any(walk.end != "memory" for walk in walks):
            return ()
        (piece,) = self._accesses.pieces(gpa, 1)
        if self._is_unclear(op, piece):
            return ()
        if piece.kind != "memory":
            if any(walk.sets_bits for walk in walks):
                return ()
            return _stops(FETCH_OUTSIDE if piece.kind == "hole" else HVA_ABSENT)
        if gpa % PAGE_SIZE_BYTES > _LAST_OFFSET:
            return ()
        (piece,) = self._accesses.pieces(gpa, _LONGEST)
        code = self._contents.read(piece.mapping, piece.offset, piece.length)
        identity = stub_identity(code[:STUB_LENGTH])
        if identity is not None:
            return self._allowed(op, Touched(identity), walks, piece)
        if op.tables is None:
            return ()
        if code.startswith(LOAD):
            return self._load(op, piece, walks)
        if code.startswith(STORE):
            return self._store(op, piece, walks)
        return ()

    def _load(self, op: Start, code: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        found = self._data(op, write=False)
        if not isinstance(found, _Data):
            return found if _is_settled(walks) else ()
        walk, pieces = found.walk, found.pieces
        value = int.from_bytes(self._accesses.read(pieces), "little")
        exits = exits_of(pieces)
        return self._allowed(op, Touched(value, exits), (*walks, walk), code)

    def _store(self, op: Start, code: Piece, walks: tuple[Walk, ...]) -> _Outcomes:
        found = self._data(op, write=True)
        if not isinstance(found, _Data):
            return found if _is_settled(walks) else ()
        walk, pieces = found.walk, found.pieces
        data = op.value.to_bytes(_WORD, "little")
        (piece,) = pieces
        kept = not leaves_memory(piece, write=True)
        held = data if kept else self._accesses.read(pieces)
        exits: list[Mmio] = [*exits_of(pieces, data), *exits_of(pieces)]
        outcome = Touched(int.from_bytes(held, "little"), joined(exits))
        return self._allowed(op, outcome, (*walks, walk), code, pieces)

    def _data(self, op: Start, write: bool) -> "_Outcomes | _Data":
        """Return where the word that a program accesses is, or how the vCPU stops at it."""
        assert op.tables is not None
        if op.data % PAGE_SIZE_BYTES > PAGE_SIZE_BYTES - _WORD:
            return ()
        walk = self._tables.walk(op.tables, op.data, write)
        if walk.end != "memory":
            return self._fault(op, walk)
        pieces = self._accesses.pieces(walk.gpa, _WORD)
        (piece,) = pieces
        if self._is_unclear(op, piece) or piece.kind == "absent" or piece.protected:
            return ()
        if leaves_memory(piece, write) and walk.sets_bits:
            return ()  # Where MMIO is remembered by its address nobody walks.
        return _Data(walk, pieces)

    def _allowed(
        self,
        op: Start,
        outcome: Touched,
        walks: tuple[Walk, ...],
        code: Piece,
        written: tuple[Piece, ...] = (),
    ) -> _Outcomes:
        """Return an outcome with what it takes: walks, fetches, and perhaps a word written."""
        if not walks:
            return (Allowed(outcome, REACH, partial(self._run, op, walks, code, written, False)),)
        if not any(walk.reads_only for walk in walks):
            effect = partial(self._run, op, walks, code, written, True)
            return (Allowed(outcome, GUEST_TABLES, effect),)
        if any(each.is_new and not each.entry.readonly for walk in walks for each in walk.updates):
            return ()
        usual = Allowed(
            outcome, READONLY_TABLES, partial(self._run, op, walks, code, written, False)
        )
        is_apart = changed_bytes(written) > 0
        return (usual, *_stops(READONLY_TABLES, is_apart))

    def _run(
        self,
        op: Start,
        walks: tuple[Walk, ...],
        code: Piece,
        written: tuple[Piece, ...],
        sets_bits: bool,
    ) -> None:
        self._tables.adopt(op.vcpu, walks, sets_bits)
        self._accesses.was_read(op.vcpu, (code,))
        if written:
            data = op.value.to_bytes(_WORD, "little")
            word = Touch(written[0].gpa, "write", 4, op.value, op.vcpu)
            self._accesses.written(word, written, data)

    def _is_unclear(self, op: Start, piece: Piece) -> bool:
        """Whether the rules do not say what is there."""
        return (
            piece.kind in ("unknown", "fault")
            or piece.private
            or piece.mapping == GUEST_MAPPING
            or is_apic_page(piece.gpa, piece.gpa + piece.length)
            or self._internal.reached(op.vcpu, piece.gpa, piece.length)
        )


@dataclass(frozen=True, slots=True)
class _Data:
    """A word that a program accesses, and the walk that led there."""

    walk: Walk
    pieces: tuple[Piece, ...]


def _is_settled(walks: tuple[Walk, ...]) -> bool:
    """Whether no walk sets a bit: of one that is stopped it is not known which are set."""
    return not any(walk.sets_bits for walk in walks)


def _stops(rule: Rule, is_apart: bool = False) -> _Outcomes:
    return tuple(Allowed(Stopped(reason), rule, is_apart=is_apart) for reason in CANNOT_FETCH)
