"""Walks the guest's own page tables in memory.

A walk reads an entry of each level at the gpa where a processor reads it, through the current slot
there. Walked are tables of four levels in 64-bit mode, and those of 32-bit mode, as
`Vcpu.enter_long_mode` and `Vcpu.enter_32_bit_mode` set it up: without no-execute entries, and with
all code in supervisor mode.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vmm.model.accesses import Accesses, leaves_memory
from vmm.model.backing import Piece
from vmm.model.contents import Contents
from vmm.model.rule import documented, source
from vmm.scenario.operations import GUEST_MAPPING, PAGE_SIZE_BYTES, Touch
from vmm.scenario.paging import KINDS, Paging
from vmm.scenario.programs import (
    ACCESSED,
    DIRTY,
    ENTRY_BYTES,
    LARGE,
    PRESENT,
    WRITABLE,
)

GUEST_TABLES = documented(
    "guest-tables",
    "a guest's address reaches what its page tables translate it to, as their slots show them "
    "now; accessed and dirty bits are set there, and a dirty log names those pages",
    "api.rst 4.8, 4.35; Intel SDM vol. 3, 4.8; update_accessed_dirty_bits",
)
PAGE_FAULT = documented(
    "page-fault",
    "an address that page tables do not map faults, which without an interrupt table is a triple "
    "fault: KVM_EXIT_SHUTDOWN",
    "api.rst 5; Intel SDM vol. 3, 4.7, 6.15",
)
TABLES_OUTSIDE = source(
    "tables-outside",
    "page tables at a gpa without memory map nothing: the vCPU stops, by a triple fault or "
    "because nothing can be fetched",
    "FNAME(walk_addr_generic): kvm_is_error_hva; mmu_check_root; api.rst 5, KVM_EXIT_SHUTDOWN",
)
READONLY_TABLES = source(
    "readonly-tables",
    "page tables in a READONLY slot are used, and no accessed or dirty bit is set there; if "
    "nested paging needs them writable, the vCPU stops",
    "ba6a35415455; update_accessed_dirty_bits",
)

End = Literal["memory", "page-fault", "outside", "unknown"]

_Page = tuple[int, str, int]
"""The gfn where page tables were walked, and the page of a mapping that its slot showed there."""

_LONG = KINDS["long"]
_POINTERS_BYTES = KINDS["pae"].alignment
_READ_ONLY_PIECES = ("hole", "absent")


@dataclass(frozen=True, slots=True)
class Update:
    """An entry that a walk used, and its low byte, with accessed and dirty bits, after the walk."""

    entry: Piece
    low: int
    is_new: bool
    is_pointer: bool = False
    """Whether it has no accessed bit by the manuals; QEMU 7.2's processor sets one even so."""


@dataclass(frozen=True, slots=True)
class Walk:
    """The result of a walk: the gpa if it ended in ``memory``, and what it did to each entry."""

    end: End
    gpa: int = 0
    updates: tuple[Update, ...] = ()

    @property
    def sets_bits(self) -> bool:
        """Whether it sets a bit that was clear."""
        return any(each.is_new for each in self.updates)

    @property
    def reads_only(self) -> bool:
        """Whether an entry is in a READONLY slot."""
        return any(each.entry.readonly for each in self.updates)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """Bytes of page tables that a guest writes, in one entry or two, by their place in memory."""

    mapping: str
    offset: int
    data: bytes

    def is_in(self, entry: Piece) -> bool:
        """Whether some of the bytes are in an entry."""
        ends = self.offset + len(self.data)
        return (
            entry.mapping == self.mapping
            and entry.offset < ends
            and self.offset < entry.offset + entry.length
        )

    def laid_over(self, entry: Piece, held: bytes) -> bytes:
        """Return an entry that they are in, of which memory holds ``held`` before."""
        begin = self.offset - entry.offset
        data = self.data[max(-begin, 0) : entry.length - begin]
        begin = max(begin, 0)
        return held[:begin] + data + held[begin + len(data) :]


class PageTables:
    """Walks page tables, and knows which entries a processor may have cached.

    A kernel notices writes to page tables only by guests, and a processor need not reread a cached
    entry. So the result is unknown if an entry has changed since its page was last walked. Writes
    by a VM's only vCPU in real mode are an exception: entering 64-bit mode flushes what was cached.
    They go through the gfn, and the address space, where the page was walked: a kernel that shadows
    page tables looks out for no others of the same memory.
    """

    def __init__(self, accesses: Accesses, contents: Contents) -> None:
        self._accesses = accesses
        self._contents = contents
        self._walked: dict[_Page, bytes] = {}

    def walk(
        self,
        tables: int,
        address: int,
        write: bool,
        rewritten: Rewritten | None = None,
        paging: Paging = _LONG,
    ) -> Walk:
        """Translate an address by the tables at a gpa; nothing is changed.

        ``rewritten`` is what the guest writes before; what was cached of it will be invalidated.
        """
        updates: list[Update] = []
        table = tables
        levels = len(paging.shifts)
        for level in reversed(range(levels)):
            piece = self._entry(table, address, level, paging)
            if piece.kind in _READ_ONLY_PIECES:
                return _ended("outside", updates)
            data = self._held(piece, rewritten)
            if data is None:
                return Walk("unknown")
            entry = int.from_bytes(data, "little")
            is_pointer = paging.has_pointers and level == levels - 1
            if is_pointer and any(_is_no_pointer(each, paging) for each in self._pointers(piece)):
                return Walk("unknown")
            if not entry & PRESENT:
                return _ended("page-fault", updates)
            if is_pointer:
                updates.append(Update(piece, entry & 0xFF, is_new=False, is_pointer=True))
                table = entry & paging.address_bits
                continue
            if _is_unclear(entry, level, paging):
                return Walk("unknown")
            if write and not entry & WRITABLE:
                return _ended("page-fault", updates)
            is_large = level > 0 and bool(entry & LARGE)
            is_last = level == 0 or is_large
            bits = ACCESSED | (DIRTY if is_last and write else 0)
            updates.append(Update(piece, (entry | bits) & 0xFF, bits & ~entry != 0))
            table = entry & paging.address_bits
            if is_last:
                gpa = paging.large_page(entry) if is_large else table
                return _found(gpa, address & (1 << paging.shifts[level]) - 1, updates)
        raise AssertionError("the last level has the last entry")

    def _held(self, entry: Piece, rewritten: Rewritten | None) -> bytes | None:
        """Return what a processor reads of an entry; None if that is unknown."""
        if entry.kind != "memory" or entry.private or entry.protected:
            return None
        if entry.mapping == GUEST_MAPPING:
            return None
        held = self._contents.read(entry.mapping, entry.offset, entry.length)
        if rewritten is not None and rewritten.is_in(entry):
            return rewritten.laid_over(entry, held)
        return None if self._is_stale(entry) else held

    def is_marked(self, walk: Walk) -> bool:
        """Whether a processor may have set a bit in the highest table of PAE.

        KVM refuses a table with that bit. It loads it where it walks itself: before an exit.
        """
        pointers = [update.entry for update in walk.updates if update.is_pointer]
        return any(
            self._contents.is_vague(entry.mapping, entry.offset & -_POINTERS_BYTES, _POINTERS_BYTES)
            or any(each & PRESENT and each & ACCESSED for each in self._pointers(entry))
            for entry in pointers
        )

    def _pointers(self, entry: Piece) -> list[int]:
        """Return the entries of the highest table of PAE, which are loaded all at once."""
        begin = entry.offset & -_POINTERS_BYTES
        data = self._contents.read(entry.mapping, begin, _POINTERS_BYTES)
        parts = (data[at : at + ENTRY_BYTES] for at in range(0, _POINTERS_BYTES, ENTRY_BYTES))
        return [int.from_bytes(each, "little") for each in parts]

    def tried(self, vcpu: int, tables: int, address: int, paging: Paging) -> None:
        """Note the entries that a walk uses, whatever it comes to."""
        for number, entry in enumerate(self._looked_at(tables, address, paging)):
            self._used(vcpu, entry, is_pointer=paging.has_pointers and not number)

    def _used(self, vcpu: int, entry: Piece, is_pointer: bool) -> None:
        self._accesses.was_walked(vcpu, entry)
        if is_pointer:
            self._accesses.may_be_marked(self._accesses.pieces(entry.gpa, 1))

    def _looked_at(self, tables: int, address: int, paging: Paging) -> list[Piece]:
        """Return the entries that a walk reads in memory."""
        found: list[Piece] = []
        table = tables
        for level in reversed(range(len(paging.shifts))):
            piece = self._entry(table, address, level, paging)
            if piece.kind != "memory" or piece.private:
                break
            found.append(piece)
            data = self._contents.read(piece.mapping, piece.offset, piece.length)
            entry = int.from_bytes(data, "little")
            if not entry & PRESENT or entry & LARGE:
                break
            table = entry & paging.address_bits
        return found

    def _entry(self, table: int, address: int, level: int, paging: Paging) -> Piece:
        """Return the place of the entry that a walk uses in a table."""
        at = table + paging.index_of(address, level) * paging.entry_bytes
        (piece,) = self._accesses.pieces(at, paging.entry_bytes)
        return piece

    def adopt(
        self,
        vcpu: int,
        walks: tuple[Walk, ...],
        sets_bits: bool,
        kept: tuple[tuple[Piece, bytes], ...] = (),
    ) -> None:
        """Apply walks: with ``sets_bits``, set accessed and dirty bits in their entries.

        ``kept`` are entries, as they were, of which other addresses may still be cached.
        """
        for walk in walks:
            for update in walk.updates:
                self._used(vcpu, update.entry, update.is_pointer)
                if sets_bits and update.is_new:
                    gpa = update.entry.gpa
                    byte = Touch(gpa, "write", 1, update.low, vcpu)
                    pieces = self._accesses.pieces(gpa, 1)
                    self._accesses.written(byte, pieces, bytes((update.low,)))
        if walks and not self._walked:  # Watching costs time, and few scenarios have any walk.
            self._accesses.watch(self._rewritten)
        for walk in walks:
            for page in self._pages(walk):
                self._walked[page] = self._read(page)
        for entry, held in kept:
            self._keep(entry, held)

    def cached(self, entry: Piece) -> bytes:
        """Return an entry as a processor may have cached it."""
        known, at = self._walked.get(_page(entry)), entry.offset % PAGE_SIZE_BYTES
        if known is None:
            return self._contents.read(entry.mapping, entry.offset, entry.length)
        return known[at : at + entry.length]

    def _keep(self, entry: Piece, held: bytes) -> None:
        page, at = _page(entry), entry.offset % PAGE_SIZE_BYTES
        known = self._walked[page]
        self._walked[page] = known[:at] + held + known[at + entry.length :]

    def _rewritten(self, pieces: tuple[Piece, ...], data: bytes) -> None:
        at = 0
        for piece in pieces:
            page, begin = _page(piece), piece.offset % PAGE_SIZE_BYTES
            known = self._walked.get(page)
            if known is not None and piece.kind == "memory" and not leaves_memory(piece, True):
                part = data[at : at + piece.length]
                self._walked[page] = known[:begin] + part + known[begin + len(part) :]
            at += piece.length

    def _pages(self, walk: Walk) -> Iterator[_Page]:
        for update in walk.updates:
            yield _page(update.entry)

    def _read(self, page: _Page) -> bytes:
        _, mapping, number = page
        return self._contents.read(mapping, number * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES)

    def _is_stale(self, piece: Piece) -> bool:
        """Whether an entry has changed, and a processor may have cached the old one."""
        known, at = self._walked.get(_page(piece)), piece.offset % PAGE_SIZE_BYTES
        if known is None or not known[at] & PRESENT:
            return False
        now = self._contents.read(piece.mapping, piece.offset, piece.length)
        return now != known[at : at + piece.length]


def _is_no_pointer(entry: int, paging: Paging) -> bool:
    """Whether an entry of the highest table of PAE has bits that are reserved, or do something."""
    return entry & PRESENT != 0 and entry & ~(paging.address_bits | ACCESSED) != PRESENT


def _is_unclear(entry: int, level: int, paging: Paging) -> bool:
    """Whether an entry has bits whose effect is not modelled."""
    known = paging.address_bits | PRESENT | WRITABLE | LARGE | ACCESSED | DIRTY
    return bool(entry & ~known) or (entry & LARGE != 0 and level != 1)


def _found(gpa: int | None, within: int, updates: list[Update]) -> Walk:
    """Return the result of a walk to a page; to none if reserved bits of a large one are set."""
    return Walk("unknown") if gpa is None else Walk("memory", gpa | within, tuple(updates))


def _page(piece: Piece) -> _Page:
    return piece.gpa // PAGE_SIZE_BYTES, piece.mapping, piece.offset // PAGE_SIZE_BYTES


def _ended(end: End, updates: list[Update]) -> Walk:
    """Return the result of a walk that translates nothing.

    Whether the accessed bits of the higher entries are set by then depends on the walker, so the
    result is unknown unless they were set before.
    """
    if any(each.is_new and not each.entry.readonly for each in updates):
        return Walk("unknown")
    return Walk(end)


def is_settled(walks: tuple[Walk, ...]) -> bool:
    """Whether no walk sets a bit; if a walk is stopped, it is unknown which ones are set."""
    return not any(walk.sets_bits for walk in walks)
