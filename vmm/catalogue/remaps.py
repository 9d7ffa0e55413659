"""A guest maps an address anew and invalidates it; and what it then reaches there."""

from collections.abc import Iterator

from vmm.catalogue._build import Slot, at
from vmm.catalogue._starts import VALUE, lowest_level, programs, start_scenario
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    Place,
    Start,
)
from vmm.scenario.pagetables import PROGRAM_OFFSET, USED, Tables
from vmm.scenario.programs import ENTRY_BYTES, copy, entries, index_of, remap, remap_both, writes

_GFNS = (0x104, 0x105, 0x106, 0x107, 0x103, 0x110, 0x10C, 0x102)
_STORING, _LOADING, _REMAPPING, _COPYING, _TABLE, _PAGE, _TARGET, _UPPER = range(8)
"""Pages by their addresses: programs, the table of the lowest level, the page that changes, what
is copied to, and the table above the lowest."""

_TABLES = Tables("a", 0x100, _GFNS, bits=USED)
_WORD = _TABLES.address(_PAGE) + 0x40
_MEMORY = Slot(1, 0x100, at("a"), pages=8)
_FIRST, _SECOND = Slot(2, 0x114, at("b")), Slot(3, 0x116, at("b", 1))
_OUTPUT = Slot(4, 0x10C, at("b", 2))
_HOLE, _OTHER_HOLE = 0x110, 0x118
_RELOAD_OFFSET, _LAST_OFFSET = PROGRAM_OFFSET + 0x100, PROGRAM_OFFSET + 0x200
"""Where the programs begin that invalidate by loading CR3, at the usual address and the last."""

_LAST_INDEX = 511
_LAST_WORD = _LAST_INDEX * PAGE_SIZE_BYTES + 0x40
"""The last address but for less than a page that the table of the lowest level maps."""


def _programs() -> Iterator[AnyOperation]:
    yield from programs()
    for page, program in ((_REMAPPING, remap(_WORD)), (_COPYING, copy(_WORD))):
        yield from writes(Place("a", (4 + page) * PAGE_SIZE_BYTES + PROGRAM_OFFSET), program)
    for offset, word in ((_RELOAD_OFFSET, _WORD), (_LAST_OFFSET, _LAST_WORD)):
        reloading = Place("a", (4 + _REMAPPING) * PAGE_SIZE_BYTES + offset)
        yield from writes(reloading, remap(word, reloads=True))


def _map(gfn: int, offset: int = PROGRAM_OFFSET) -> Start:
    """Let the guest map a page to a gfn, invalidate its address, and read there."""
    index = index_of(_WORD, 0) if offset != _LAST_OFFSET else _LAST_INDEX
    entry = _TABLES.address(_TABLE) + index * ENTRY_BYTES
    code = _TABLES.address(_REMAPPING) + offset
    return Start(code, _TABLES.gpa, entry, gfn * PAGE_SIZE_BYTES | USED)


_EQUAL = Tables("a", 0x100, (*_GFNS[:_PAGE], _TARGET, _GFNS[_TARGET]), bits=USED)
"""The page's gfn, a hole, is the number of the target's page, and so its address."""

_UNUSED = Start(
    _TABLES.address(_COPYING) + PROGRAM_OFFSET, _TABLES.gpa, _TABLES.address(_UPPER) + 0x800
)
"""A copy to an entry that nothing uses of a table above the last level: KVM writes it itself, if it
shadows that table, and so meets no other MMIO on its way."""

_ACROSS = Tables("a", 0x100, (0x104, 0x105, 0x106, 0x102, 0x107), bits=USED)
_EXCHANGING = 4
_SECOND_START = 1 << 21
"""The first address of the second entry of the table at 0x102, which leads to one of two tables."""

_ATOMIC = Place("a", 7 * PAGE_SIZE_BYTES + PROGRAM_OFFSET)
_PROGRAM = Place("a", (4 + _REMAPPING) * PAGE_SIZE_BYTES + PROGRAM_OFFSET)
_TABLE_GFN = 0x103
_TWICE = Tables("a", 0x100, (*_GFNS[:_PAGE], _FIRST.gfn), bits=USED)
_PAIR = Tables("a", 0x100, (*_GFNS[:_PAGE], _FIRST.gfn, _SECOND.gfn), bits=USED)
_SECOND_WORD = _SECOND_START + 0x40
_SECOND_TABLES = Slot(2, 0x108, at("b"), pages=2)


def _lead(gfn: int, is_across: bool = False, is_atomic: bool = False) -> Start:
    """Let the guest change where the second entry leads, and read there.

    ``is_across``: by a word whose lower half is in the entry before, which it leaves as it was.
    """
    begin, value = ENTRY_BYTES, gfn * PAGE_SIZE_BYTES | USED
    if is_across:
        begin, value = ENTRY_BYTES - 2, (value & 0xFFFF) << 16
    code = _ACROSS.address(_EXCHANGING if is_atomic else _REMAPPING) + PROGRAM_OFFSET
    return Start(code, _ACROSS.gpa, _ACROSS.address(3) + begin, value)


def _across() -> Iterator[AnyOperation]:
    """Yield what the host writes to memory before, and the slots."""
    yield from _ACROSS.lay()
    yield from entries(at("a", 2), {1: _SECOND_TABLES.gfn * PAGE_SIZE_BYTES | USED})
    yield from lowest_level(at("b"), (0x104, 0x105), USED)
    yield from lowest_level(at("b", 1), (0x105, 0x104), USED)
    yield from programs()
    yield from writes(_PROGRAM, remap(_SECOND_WORD))
    yield from writes(_ATOMIC, remap(_SECOND_WORD, is_atomic=True))
    yield from (_MEMORY.create(), _SECOND_TABLES.create())


_READ = _TABLES.access(_LOADING, _PAGE)
_COPY = _TABLES.access(_COPYING, _TARGET)


_SET_UP = (
    *_TABLES.lay(),
    *_programs(),
    *(_MEMORY.create(), _FIRST.create(), _SECOND.create()),
)
_SOURCE = "kvm_mmu_invlpg, FNAME(sync_spte), vcpu_clear_mmio_info; Intel SDM vol. 3, 4.10.4"
_TRACKED = (
    "kvm_mmu_track_write, mmu_pte_write_fetch_gpte, detect_write_misaligned, "
    "emulator_cmpxchg_emulated; Intel SDM vol. 3, 4.10.4.1"
)

SCENARIOS = (
    start_scenario(
        "and-map-an-address-anew",
        "After INVLPG, or a load of CR3, an address reaches what its page tables say by then, be "
        "it a slot or a hole.",
        *_SET_UP,
        _READ,
        *(_map(gfn) for gfn in (_FIRST.gfn, _SECOND.gfn, _HOLE, _OTHER_HOLE, _SECOND.gfn)),
        _READ,
        _FIRST.delete(),
        *(_map(gfn) for gfn in (_FIRST.gfn, _SECOND.gfn)),
        _FIRST.create(),
        *(_map(gfn) for gfn in (_FIRST.gfn, _HOLE)),
        _READ,
        *(
            _map(gfn, offset)
            for offset in (_RELOAD_OFFSET, _LAST_OFFSET)
            for gfn in (_FIRST.gfn, _SECOND.gfn, _HOLE, _FIRST.gfn)
        ),
        source=f"{_SOURCE}; kvm_mmu_sync_roots",
    ),
    start_scenario(
        "and-copy-from-where-mmio-was",
        "What is copied to a READONLY slot or a hole comes from what the source is mapped to now, "
        "not from the hole that was there.",
        *_SET_UP,
        _OUTPUT.change(READONLY),
        *(_READ, _COPY, _map(_FIRST.gfn), _COPY),
        *(_map(_HOLE), _COPY, _map(_OTHER_HOLE), _COPY, _map(_SECOND.gfn), _COPY),
        *(_OUTPUT.delete(), _READ, _COPY, _map(_HOLE), _map(_FIRST.gfn), _COPY),
        *(_OUTPUT.create(), _map(_HOLE), _COPY, _map(_FIRST.gfn), _COPY),
        _OUTPUT.delete(),
        *(_map(_HOLE, _RELOAD_OFFSET), _map(_FIRST.gfn, _RELOAD_OFFSET), _COPY),
        *(_map(_HOLE), _UNUSED, _map(_SECOND.gfn), _UNUSED),
        *(_map(_HOLE, _RELOAD_OFFSET), _map(_FIRST.gfn, _RELOAD_OFFSET), _UNUSED),
        source=f"{_SOURCE}; vcpu_mmio_gva_to_gpa, kvm_mmu_sync_roots",
        needs=("readonly_mem",),
    ),
    start_scenario(
        "and-copy-to-an-address-equal-to-the-gpa-of-mmio",
        "What is copied from a hole lands in the slot that the target's address leads to, though "
        "that address as a gpa is the hole.",
        *_EQUAL.lay(),
        *_programs(),
        *(_MEMORY.create(), _OUTPUT.create()),
        *(_EQUAL.access(_LOADING, _PAGE), _EQUAL.access(_COPYING, _TARGET)),
        *(_EQUAL.access(_LOADING, _TARGET), _EQUAL.access(_LOADING, _PAGE)),
        *(_EQUAL.access(_STORING, _TARGET, VALUE), _EQUAL.access(_COPYING, _TARGET)),
        source="vcpu_match_mmio_gva, kvm_handle_noslot_fault",
    ),
    start_scenario(
        "and-map-an-address-anew-below-another-entry",
        "A page table that the guest has written is used as it is now by another entry that leads "
        "to it, too.",
        *_TWICE.lay(),
        *entries(at("a", 2), {1: _TABLE_GFN * PAGE_SIZE_BYTES | USED}),
        *programs(),
        *writes(_PROGRAM, remap(_SECOND_START + _WORD)),
        *(_MEMORY.create(), _FIRST.create(), _SECOND.create()),
        _TWICE.access(_LOADING, _PAGE),
        *(_map(gfn) for gfn in (_SECOND.gfn, _FIRST.gfn, _SECOND.gfn)),
        source=f"{_SOURCE}; kvm_mmu_find_shadow_page",
    ),
    start_scenario(
        "and-map-two-addresses-anew-below-another-entry",
        "The same for two addresses, of which the first one has been read by then.",
        *_PAIR.lay(),
        *entries(at("a", 2), {1: _TABLE_GFN * PAGE_SIZE_BYTES | USED}),
        *programs(),
        *writes(_PROGRAM, remap_both(_SECOND_START + _WORD)),
        *(_MEMORY.create(), _FIRST.create(), _SECOND.create()),
        *(_PAIR.access(_LOADING, page) for page in (_PAGE, _PAGE + 1)),
        *(_map(gfn) for gfn in (_FIRST.gfn, _SECOND.gfn, _HOLE, _FIRST.gfn)),
        source=f"{_SOURCE}; kvm_mmu_find_shadow_page, kvm_sync_page",
    ),
    start_scenario(
        "and-map-two-megabytes-anew",
        "After INVLPG an address reaches what an entry above the last level says by then, even if "
        "it was exchanged.",
        *_across(),
        *(_lead(gfn) for gfn in (0x108, 0x109, 0x108)),
        *(_lead(gfn, is_atomic=True) for gfn in (0x109, 0x108)),
        source=_TRACKED,
    ),
    start_scenario(
        "and-map-two-megabytes-anew-by-a-write-across-entries",
        "The same where the guest, in 64-bit mode, writes the end of one entry and the beginning "
        "of the next by one word.",
        *_across(),
        *(_lead(gfn, is_across=True) for gfn in (0x108, 0x109, 0x108)),
        source=_TRACKED,
    ),
)
"""All scenarios in which a guest changes its own page tables in 64-bit mode."""
