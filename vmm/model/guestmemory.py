"""What a guest's addresses reach: walks of its page tables, and what lies where they end."""

from dataclasses import dataclass

from vmm.model.accesses import Accesses, leaves_memory
from vmm.model.apicpage import is_apic_page
from vmm.model.backing import Piece
from vmm.model.contents import Contents
from vmm.model.internal import InternalSlots
from vmm.model.pagetables import PageTables, Walk
from vmm.scenario.operations import GUEST_MAPPING, PAGE_SIZE_BYTES, Start
from vmm.scenario.programs import ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Data:
    """What a program or an interrupt accesses, and the walk that led there."""

    walks: tuple[Walk, ...]
    pieces: tuple[Piece, ...]
    is_outside: bool = False
    """Whether the access does not reach memory."""


class GuestMemory:
    """The memory of a vCPU that a scenario starts, by the addresses that its code uses."""

    def __init__(self, accesses: Accesses, contents: Contents, internal: InternalSlots) -> None:
        self.accesses = accesses
        self.tables = PageTables(accesses, contents)
        self._internal = internal

    def at(self, op: Start, address: int, length: int, write: bool = False) -> Data | None:
        """Return what is at an address, memory or a hole; None if it is unknown."""
        if address % PAGE_SIZE_BYTES + length > PAGE_SIZE_BYTES:
            return None
        walks: tuple[Walk, ...] = ()
        gpa = address
        if op.tables is not None:
            walks = (self.tables.walk(op.tables, address, write),)
            if walks[0].end != "memory":
                return None
            gpa = walks[0].gpa
        pieces = self.accesses.pieces(gpa, length)
        (piece,) = pieces
        if piece.kind == "absent" or piece.protected or self.is_unclear(op, piece):
            return None
        if self.accesses.are_vague(pieces):
            return None
        return Data(walks, pieces, leaves_memory(piece, write))

    def descriptor(self, op: Start, address: int) -> Data | None:
        """Return a descriptor, which may cross pages."""
        first = min(ENTRY_BYTES, PAGE_SIZE_BYTES - address % PAGE_SIZE_BYTES)
        if first == ENTRY_BYTES:
            return self.at(op, address, first)
        begin = self.at(op, address, first)
        end = self.at(op, address + first, ENTRY_BYTES - first)
        if begin is None or end is None:
            return None
        is_outside = begin.is_outside or end.is_outside
        return Data(begin.walks + end.walks, begin.pieces + end.pieces, is_outside)

    def is_unclear(self, op: Start, piece: Piece) -> bool:
        """Whether the rules do not say what is at a piece."""
        return (
            piece.kind in ("unknown", "fault")
            or piece.private
            or piece.mapping == GUEST_MAPPING
            or is_apic_page(piece.gpa, piece.gpa + piece.length)
            or self._internal.reached(op.vcpu, piece.gpa, piece.length)
        )
