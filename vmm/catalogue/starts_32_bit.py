"""Guests in 32-bit mode: page tables of two levels, and those of PAE, in slots of the scenario."""

from collections.abc import Iterator
from dataclasses import replace

from vmm.catalogue._area import Area
from vmm.catalogue._build import Slot, at, write
from vmm.catalogue._starts import (
    CODE,
    GFNS,
    TABLES,
    VALUE,
    WALK,
    accesses,
    programs,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    AnyOperation,
    ChangeHostMemory,
    Place,
    Start,
)
from vmm.scenario.pagetables import PLAIN, USED, Tables
from vmm.scenario.programs import LARGE, entries

_TWO = Tables("a", 0x100, GFNS, bits=USED, paging="two-level")
_PAE = Tables("a", 0x100, GFNS, bits=USED, paging="pae", begin=0xE20)
_WIDTH = 4
_HALF = 512
"""Entries of four bytes whose page KVM shadows by one table, of two."""

_OTHER = replace(_TWO, start=_HALF * PAGE_SIZE_BYTES)
_IN_GIB = replace(_PAE, start=1 << 30)
_NEXT = 4 << 20
"""What an entry of the upper table of two levels maps."""

_LOGGED = Slot(1, 0x100, at("a"), 4, LOG_DIRTY_PAGES)
_QUADRANT = "kvm_mmu_child_role; Intel SDM vol. 3, 4.3"


def _upper_half() -> Iterator[AnyOperation]:
    """Map the pages in reverse in the upper half of the table of pages."""
    pages = enumerate(reversed(GFNS), _HALF)
    yield from entries(
        Place("a", PAGE_SIZE_BYTES), {n: g * PAGE_SIZE_BYTES | USED for n, g in pages}, _WIDTH
    )


def _rest(mapping: str, table: int, gfns: tuple[int, ...]) -> Iterator[AnyOperation]:
    """Write another table of pages."""
    values = {n: gfn * PAGE_SIZE_BYTES | USED for n, gfn in enumerate(gfns)}
    yield from entries(Place(mapping, table * PAGE_SIZE_BYTES), values, _WIDTH)


def _upper(index: int, gfn: int) -> AnyOperation:
    """The guest, in real mode, has an entry of the upper table name a table of pages."""
    return write(0x100, gfn * PAGE_SIZE_BYTES | USED, offset=index * _WIDTH)


def _large(index: int, gpa: int) -> Iterator[AnyOperation]:
    """Map a page of 4 MiB at a gpa of up to 40 bits."""
    entry = gpa & 0xFFC0_0000 | gpa >> 32 << 13 | USED | LARGE
    yield from entries(Place("a"), {index: entry}, _WIDTH)


_ABOVE = 0x1_0080_0000
_FAR = Slot(3, _ABOVE >> 12, at("b"), 2)
_NEAR = Slot(4, (_ABOVE & 0xFFFF_FFFF) >> 12, at("b", 4), 2)

_in_32_bit_mode = Area(
    prefix="start-", tags=("start",), source=WALK, survey="none", needs=("starts_32_bit",)
)

SCENARIOS = (
    _in_32_bit_mode(
        "in-32-bit-mode",
        "Page tables of two levels are used where their slot is, the upper half of each like the "
        "lower one, before and after the code moved.",
        *_TWO.lay(),
        *_upper_half(),
        *programs(),
        TABLES.create(),
        CODE.create(),
        *accesses(_TWO),
        *(_OTHER.run(page) for page in (0, 1)),
        *accesses(_TWO),
        _OTHER.access(3, 0, VALUE ^ 1),
        _TWO.run(3),
        CODE.move(0x105),
        *(tables.run(page) for page in (1, 2) for tables in (_TWO, _OTHER)),
        source=_QUADRANT,
    ),
    _in_32_bit_mode(
        "in-32-bit-mode-after-the-guest-wrote-its-tables",
        "What a guest writes to an upper table of entries of four bytes maps what it names, at "
        "each of its entries.",
        *_TWO.lay(),
        *_rest("a", 2, (0x107, 0x104)),
        *_rest("a", 3, (0x105, 0x106)),
        *programs(),
        TABLES.create(),
        CODE.create(),
        *(
            operation
            for index in (1, 2, 255, 256, 511, 1023)
            for table in (0x102, 0x103, 0x102)
            for operation in (
                _upper(index, table),
                replace(_TWO, start=index * _NEXT).run(0),
                _TWO.run(2),
            )
        ),
        source="get_written_sptes; kvm_mmu_track_write",
    ),
    _in_32_bit_mode(
        "in-32-bit-mode-with-large-pages",
        "A page of 4 MiB lies where all 40 bits of its gpa say, above 4 GiB, too.",
        *_TWO.lay(),
        *_large(2, _ABOVE),
        *_large(3, _ABOVE & 0xFFFF_FFFF),
        TABLES.create(),
        CODE.create(),
        _FAR.create(),
        _NEAR.create(),
        *(replace(_TWO, start=n * _NEXT).run(page) for n in (2, 3, 2) for page in (0, 1)),
        _FAR.delete(),
        _NEAR.move(_FAR.gfn),
        *(replace(_TWO, start=2 * _NEXT).run(page) for page in (0, 1)),
        source="pse36_gfn_delta; Intel SDM vol. 3, 4.3",
    ),
    _in_32_bit_mode(
        "in-32-bit-mode-with-pae",
        "The four entries of PAE's highest table lie anywhere in a page, and each maps a GiB.",
        *_PAE.lay(),
        *entries(Place("a", _PAE.begin), {1: 0x103 * PAGE_SIZE_BYTES | 1}),
        ChangeHostMemory(Place("a", 3 * PAGE_SIZE_BYTES)),
        *entries(Place("a", 3 * PAGE_SIZE_BYTES), {0: 0x102 * PAGE_SIZE_BYTES | USED}),
        *programs(),
        TABLES.create(),
        CODE.create(),
        *accesses(_PAE),
        *accesses(_IN_GIB),
        CODE.move(0x105),
        *(tables.run(page) for page in (1, 2) for tables in (_PAE, _IN_GIB)),
        source="load_pdptrs; Intel SDM vol. 3, 4.4",
    ),
    _in_32_bit_mode(
        "in-32-bit-mode-logs-its-tables",
        "Accessed and dirty bits that are set in entries of four bytes are logged.",
        *replace(_TWO, bits=PLAIN).lay(),
        *programs(),
        _LOGGED.create(),
        CODE.create(),
        _LOGGED.log(),
        *accesses(_TWO),
        _LOGGED.log(),
        *accesses(_TWO),
        _LOGGED.log(),
        Start(_TWO.address(0x20), _TWO.gpa, paging="two-level"),
        tags=("dirty",),
        source="update_accessed_dirty_bits; api.rst 4.8",
    ),
)
"""All scenarios about guests in 32-bit mode."""
