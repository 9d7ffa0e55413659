"""A guest's own page tables, and interrupt tables, as operations of the host that write them."""

from collections.abc import Iterator
from dataclasses import dataclass

from vmm.scenario.content import STUB_OFFSET
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    ChangeHostMemory,
    HostWrite,
    Place,
    Start,
)
from vmm.scenario.paging import KINDS, PagingKind
from vmm.scenario.programs import (
    ACCESSED,
    CODE_DESCRIPTOR,
    CODE_SELECTOR,
    DIRTY,
    ENTRY_BYTES,
    LONG_GATE_BYTES,
    PRESENT,
    REAL_GATE_BYTES,
    VECTOR,
    WRITABLE,
    entries,
    long_gate,
    real_gate,
    writes,
)

PROGRAM_OFFSET = 0x900
"""The offset of a program in a page, after the code in every page."""

STACK_OFFSET = 0x400
PAGES = 4
"""Page tables take one page for each level."""

PLAIN = PRESENT | WRITABLE
USED = PLAIN | ACCESSED | DIRTY


@dataclass(frozen=True, slots=True)
class Tables:
    """Page tables in pages of a mapping from ``page`` on, which a slot shows from ``gfn`` on.

    They map the pages from the address ``start`` on, which are in one table, to ``gfns``; ``bits``
    are those of all entries, ``upper``, if given, those of the levels above pages. In 32-bit mode
    with PAE the highest entries have nothing but an address.
    """

    mapping: str
    gfn: int
    gfns: tuple[int, ...]
    page: int = 0
    bits: int = PLAIN
    upper: int | None = None
    start: int = 0
    paging: PagingKind = "long"
    begin: int = 0
    """The offset of the highest table in its page, with PAE."""

    def lay(self) -> Iterator[AnyOperation]:
        """Yield the host's operations that write the tables."""
        paging = KINDS[self.paging]
        levels, width = len(paging.shifts), paging.entry_bytes
        upper = self.bits if self.upper is None else self.upper
        yield ChangeHostMemory(Place(self.mapping, self.page * PAGE_SIZE_BYTES), levels)
        for level in range(levels - 1):
            below = (self.gfn + level + 1) * PAGE_SIZE_BYTES
            index = paging.index_of(self.start, levels - 1 - level)
            bits = PRESENT if paging.has_pointers and not level else upper
            yield from entries(self._table(level), {index: below | bits}, width)
        first = paging.index_of(self.start, 0)
        pages = {
            index: gfn * PAGE_SIZE_BYTES | self.bits for index, gfn in enumerate(self.gfns, first)
        }
        yield from entries(self._table(levels - 1), pages, width)

    def _table(self, number: int) -> Place:
        """Return the hva of a table, counted from the highest."""
        begin = 0 if number else self.begin
        return Place(self.mapping, (self.page + number) * PAGE_SIZE_BYTES + begin)

    @property
    def gpa(self) -> int:
        """The gpa of the highest table."""
        return self.gfn * PAGE_SIZE_BYTES + self.begin

    def run(self, page: int, vcpu: int = 0) -> Start:
        """Start at the code in a page that the tables map."""
        at = self.address(page) + STUB_OFFSET
        return Start(at, self.gpa, vcpu=vcpu, paging=self.paging)

    def address(self, page: int) -> int:
        """Return the address of a page that the tables map."""
        return self.start + page * PAGE_SIZE_BYTES

    def access(self, code: int, data: int, value: int = 0, vcpu: int = 0) -> Start:
        """Start at the program in page ``code``, which accesses a word in page ``data``."""
        address = self.address(code) + PROGRAM_OFFSET
        at = self.address(data) + 0x40
        return Start(address, self.gpa, at, value, vcpu=vcpu, paging=self.paging)

    def interrupt(self, code: int, table: int, stack: int) -> Start:
        """Start at the program in a page that raises an interrupt; the stack is within a page."""
        return Start(
            self.address(code) + PROGRAM_OFFSET,
            self.gpa,
            stack=self.address(stack) + STACK_OFFSET,
            interrupts=self.address(table),
        )


def real_interrupt(code: int, table: int, stack: int) -> Start:
    """Start in real mode at the program in a page that raises an interrupt; all pages by gfn."""
    return Start(
        code * PAGE_SIZE_BYTES + PROGRAM_OFFSET,
        stack=stack * PAGE_SIZE_BYTES + STACK_OFFSET,
        interrupts=table * PAGE_SIZE_BYTES,
    )


def real_table(place: Place, handler: int) -> Iterator[AnyOperation]:
    """Yield the operations that zero a page and write an interrupt table to it."""
    yield ChangeHostMemory(place)
    entry = Place(place.mapping, place.offset + VECTOR * REAL_GATE_BYTES)
    yield HostWrite(entry, real_gate(handler * PAGE_SIZE_BYTES + STUB_OFFSET))


def long_table(place: Place, handler: int) -> Iterator[AnyOperation]:
    """Yield the same for an interrupt and descriptor table of 64-bit mode."""
    yield ChangeHostMemory(place)
    yield from entries(place, {CODE_SELECTOR // ENTRY_BYTES: CODE_DESCRIPTOR})
    gate = Place(place.mapping, place.offset + VECTOR * LONG_GATE_BYTES)
    yield from writes(gate, long_gate(handler * PAGE_SIZE_BYTES + STUB_OFFSET))
