"""A guest's page tables and code in slots of the scenario, which are changed."""

from collections.abc import Iterator
from dataclasses import replace

import msgspec

from vmm.catalogue._build import HUGE, WITHOUT_ZAP_ALL, A, B, Slot, at, read, write
from vmm.catalogue._starts import (
    CODE,
    DATA,
    GFNS,
    LOADING,
    STORING,
    TABLES,
    USUAL,
    VALUE,
    accesses,
    lowest_level,
    programs,
    start_scenario,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    SMM,
    AnyOperation,
    ChangeHostMemory,
    GetDirtyLog,
    Guest,
    HostWrite,
    Instruction,
    Place,
    Scenario,
    Start,
)
from vmm.scenario.pagetables import PLAIN, PROGRAM_OFFSET, USED, Tables
from vmm.scenario.programs import ACCESSED, ENTRY_BYTES, LARGE, PRESENT, entries, index_of

_A_USED = Tables("a", 0x100, GFNS, bits=USED)
_B = Tables("b", 0x100, tuple(reversed(GFNS)))
_ZAP = "fcd1ec9cb59c; kvm_mmu_zap_memslot"
_BITS = "api.rst 4.8; update_accessed_dirty_bits; Intel SDM vol. 3, 4.8"


_MOVED = Tables("b", 0x200, GFNS, upper=PLAIN | ACCESSED)
_MOVING = Slot(1, 0x200, at("b"), pages=4)

_CHANGES = (
    start_scenario(
        "with-tables-that-move",
        "Page tables are used where their slot is now, and nowhere else.",
        *_MOVED.lay(),
        *programs(),
        CODE.create(),
        _MOVING.move(0x300),
        _MOVED.run(2),
        Start(_MOVED.run(2).address, 0x300 * PAGE_SIZE_BYTES),
        read(0x106),
        _MOVING.create(),
        *accesses(_MOVED),
        _MOVING.move(0x300),
        _MOVED.run(2),
        _MOVED.run(3),
        read(0x106),
        _MOVING.create(),
        *accesses(_MOVED),
    ),
    start_scenario(
        "after-tables-of-other-memory-came",
        "Page tables are read again after a slot with other memory has taken their gpa.",
        *USUAL.lay(),
        *_B.lay(),
        *programs(),
        CODE.create(),
        TABLES.create(),
        USUAL.run(2),
        USUAL.run(3),
        TABLES.delete(),
        Slot(1, 0x100, at("b"), pages=4).create(),
        USUAL.run(2),
        USUAL.run(3),
        USUAL.access(3, 1, VALUE),
        Slot(1, 0x100, at("b"), pages=4).delete(),
        TABLES.create(),
        USUAL.run(2),
        USUAL.access(STORING, 3, VALUE),
    ),
    start_scenario(
        "after-tables-were-missed",
        "A vCPU that stopped because its page tables lay in a hole runs once a slot holds them.",
        *USUAL.lay(),
        *programs(),
        CODE.create(),
        TABLES.create(),
        USUAL.run(2),
        TABLES.delete(),
        USUAL.run(2),
        TABLES.create(),
        USUAL.run(2),
        source="0e3223d8d00a; mmu_alloc_shadow_roots",
    ),
    start_scenario(
        "after-one-table-of-other-memory-came",
        "If page tables lie in two slots and one is replaced, those in the other are still used.",
        *USUAL.lay(),
        *_B.lay(),
        *programs(),
        CODE.create(),
        Slot(1, 0x100, at("a"), pages=3).create(),
        Slot(3, 0x103, at("a", 3)).create(),
        USUAL.run(2),
        Slot(3, 0x103, at("a", 3)).delete(),
        USUAL.run(2),
        Slot(3, 0x103, at("b", 3)).create(),
        USUAL.run(2),
        USUAL.run(3),
        Slot(3, 0x103, at("b", 3)).delete(),
        Slot(3, 0x103, at("a", 3)).create(),
        USUAL.run(2),
        USUAL.access(LOADING, 3),
    ),
    start_scenario(
        "after-code-moved",
        "Memory that page tables map is fetched, read and written where its slot is now.",
        *_A_USED.lay(),
        *programs(),
        TABLES.create(),
        CODE.create(),
        *accesses(_A_USED),
        _A_USED.run(3),
        CODE.move(0x105),
        _A_USED.run(1),
        _A_USED.run(3),
        _A_USED.run(0),
        CODE.create(),
        *accesses(_A_USED),
        _A_USED.run(3),
        CODE.delete(),
        _A_USED.run(3),
        Slot(2, 0x104, at("b", 4), pages=4).create(),
        _A_USED.run(3),
    ),
    start_scenario(
        "on-tables-that-are-left-without-a-slot",
        "The slot of page tables in use is deleted, then that of the code, then the VM is closed.",
        *USUAL.lay(),
        *programs(),
        TABLES.create(),
        CODE.create(),
        *accesses(),
        TABLES.delete(),
        USUAL.run(3),
        CODE.delete(),
        USUAL.run(3),
        source=_ZAP,
    ),
    start_scenario(
        "with-readonly-tables",
        "Page tables in a READONLY slot are used, and stay unchanged.",
        *_A_USED.lay(),
        *programs(),
        CODE.create(),
        TABLES.change(READONLY),
        *accesses(_A_USED),
        TABLES.delete(),
        TABLES.create(),
        *accesses(_A_USED),
        TABLES.delete(),
        TABLES.change(READONLY),
        *accesses(_A_USED),
        source="ba6a35415455; update_accessed_dirty_bits",
        needs=("readonly_mem",),
    ),
    start_scenario(
        "with-readonly-tables-not-used-before",
        "Accessed bits are set in page tables in a writable slot, but not in a READONLY one.",
        *USUAL.lay(),
        *programs(),
        CODE.create(),
        TABLES.change(READONLY),
        USUAL.run(3),
        USUAL.access(STORING, DATA, VALUE),
        TABLES.delete(),
        TABLES.create(),
        USUAL.run(3),
        USUAL.access(STORING, DATA, VALUE),
        source="ba6a35415455; update_accessed_dirty_bits",
        needs=("readonly_mem",),
    ),
    start_scenario(
        "with-logged-tables",
        "Accessed and dirty bits that the processor sets are writes: the log names their pages.",
        *USUAL.lay(),
        *programs(),
        CODE.change(LOG_DIRTY_PAGES),
        TABLES.change(LOG_DIRTY_PAGES),
        USUAL.run(3),
        TABLES.log(),
        USUAL.access(STORING, DATA, VALUE),
        TABLES.log(),
        CODE.log(),
        USUAL.access(LOADING, DATA),
        TABLES.log(),
        CODE.log(),
        source=_BITS,
    ),
    start_scenario(
        "with-tables-logged-in-between",
        "A log that is switched on, in place or by a move, names the page tables written since.",
        *USUAL.lay(),
        *programs(),
        CODE.create(),
        TABLES.create(),
        USUAL.run(3),
        TABLES.change(LOG_DIRTY_PAGES),
        USUAL.access(STORING, DATA, VALUE),
        TABLES.log(),
        TABLES.move(0x200, LOG_DIRTY_PAGES),
        USUAL.run(3),
        read(0x106),
        TABLES.change(LOG_DIRTY_PAGES),
        USUAL.access(STORING, 1, VALUE),
        TABLES.log(),
        TABLES.create(),
        USUAL.access(STORING, 3, VALUE),
        source=_BITS,
    ),
)
"""Scenarios that are also run with KVM_X86_QUIRK_SLOT_ZAP_ALL disabled."""


def _without_quirk(scenario: Scenario) -> Scenario:
    return msgspec.structs.replace(
        scenario,
        name=f"{scenario.name}-without-quirk",
        source=_ZAP,
        tags=(*scenario.tags, "quirks"),
        needs=(*scenario.needs, "slot_zap_all_quirk"),
        operations=(WITHOUT_ZAP_ALL, *scenario.operations),
    )


_LARGE = Slot(3, 0x200, at("huge"), pages=HUGE.pages)
_LEAF = Tables("huge", 0x220, GFNS, page=0x20)
"""Only the lowest level of these is used: a level above it would split the huge page."""


_TWICE = 0x200 * PAGE_SIZE_BYTES
"""What two entries map as a large page, of which a slot has four pages."""


def _at_large(code: int, entry: int, page: int = 1) -> Start:
    """Start at a program that accesses a word in a page of an entry's large page."""
    address = USUAL.address(code) + PROGRAM_OFFSET
    data = (entry << 21) + page * PAGE_SIZE_BYTES + 0x40
    return Start(address, USUAL.gpa, data, VALUE + entry)


_UPPER_GFN = 0x220
"""Where the table of page tables is, in a huge page."""

_INSIDE = Tables("huge", 0x220, GFNS, page=0x20, bits=USED)


def _mapped_to(tables: Tables, page: int, gfn: int) -> AnyOperation:
    """Let the guest, in real mode, change its page tables to map a page to another gfn."""
    return write(tables.gfn + 3, gfn * PAGE_SIZE_BYTES | PLAIN, 8 * page)


_SECOND = Tables("a", USUAL.gfn, GFNS, start=1 << 21)
"""What the second table of the lowest level maps, which is at one of two gfns from this one on."""

_SECOND_GFN = 0x108


def _across(table: int, index: int, gfn: int) -> AnyOperation:
    """Let the guest, in real mode, write the end of an entry, and the lower half of the next one's
    lower word, which has the bits and the last digit of a gfn.
    """
    value = (gfn * PAGE_SIZE_BYTES | PLAIN) & 0xFFFF
    return write(table, value << 16, ENTRY_BYTES * index + 6)


_HOLE, _OTHER_HOLE = 0x110, 0x118
_TO_A_HOLE = Tables("a", USUAL.gfn, (*GFNS, _HOLE), bits=USED)


def _taken_in(page: int, gfn: int) -> AnyOperation:
    """Let the guest, in real mode, read an entry of its page tables from a port: KVM writes it."""
    entry = (_TO_A_HOLE.gfn + 3) * PAGE_SIZE_BYTES + ENTRY_BYTES * page
    return Instruction("ins", entry, value=gfn * PAGE_SIZE_BYTES | USED)


_FAR = Tables("a", USUAL.gfn, (GFNS[DATA],), start=1 << 30)
_FAR_GFN = 0x108
"""Pages 1 GiB up are mapped by two tables of their own, from this gfn on."""


def _connected(is_there: bool) -> AnyOperation:
    """Let the guest, in real mode, write the entry that leads to those two tables, or none."""
    entry = _FAR_GFN * PAGE_SIZE_BYTES | PLAIN if is_there else 0
    return write(USUAL.gfn + 1, entry, ENTRY_BYTES * index_of(_FAR.start, 2))


def _far_page(gfn: int) -> AnyOperation:
    """Let the guest, in real mode, write the entry of the page at 1 GiB."""
    return write(_FAR_GFN + 1, gfn * PAGE_SIZE_BYTES | PLAIN, 0)


_ALIASES = range(DATA, DATA + 19)
_OFTEN = Tables("a", 0x100, (*GFNS[:DATA], *(GFNS[DATA] for _ in _ALIASES)), bits=USED)
"""Nineteen addresses map one page; a block of the kernel's rmap holds up to 14 of them."""

_LOGGED = Slot(3, 0x110, at("b"), pages=8, flags=LOG_DIRTY_PAGES)
_BESIDE = Tables("a", 0x100, (*GFNS, *GFNS, *range(0x110, 0x118)), bits=USED)
"""Eight entries of a page table that lie in one line of memory have one slot's pages."""

_ROM = Slot(1, 0xFFFF0, at("a"), pages=8)
_TOP = 0xFFFF_0800


def _laid_at(gfn: int) -> Iterator[AnyOperation]:
    """Lay page tables in a slot at a gfn, use them, and take them away."""
    tables, slot = Tables("b", gfn, GFNS), Slot(1, gfn, at("b"), pages=4)
    yield from tables.lay()
    yield slot.create()
    yield from accesses(tables)
    yield tables.run(2)
    yield slot.delete()


SCENARIOS = (
    start_scenario(
        "on-unmapped-addresses",
        "An address that page tables do not map is a page fault, and without an interrupt table a "
        "shutdown.",
        *Tables("a", 0x100, GFNS[:3], upper=PLAIN | ACCESSED, bits=USED).lay(),
        *programs(),
        TABLES.create(),
        CODE.create(),
        USUAL.run(2),
        USUAL.run(3),
        Start(1 << 21, USUAL.gpa),
        Start(1 << 30, USUAL.gpa),
        Start(1 << 39, USUAL.gpa),
        USUAL.access(STORING, 3, VALUE),
        USUAL.access(STORING, DATA, VALUE),
        source="api.rst 5, KVM_EXIT_SHUTDOWN; Intel SDM vol. 3, 4.7",
    ),
    start_scenario(
        "on-what-is-no-memory",
        "Through page tables, too, a hole is MMIO, and a READONLY slot is read.",
        *_A_USED.lay(),
        *programs(),
        TABLES.create(),
        Slot(2, 0x104, at("a", 4), pages=2).create(),
        Slot(3, 0x106, at("a", 6), flags=READONLY).create(),
        USUAL.access(LOADING, 3),
        USUAL.access(STORING, 3, VALUE),
        USUAL.access(STORING, DATA, VALUE),
        USUAL.access(LOADING, DATA),
        USUAL.run(3),
        Slot(4, 0x107, at("b", 7)).create(),
        USUAL.access(STORING, 3, VALUE),
        USUAL.run(3),
        source="api.rst 5, KVM_EXIT_MMIO",
        needs=("readonly_mem",),
    ),
    *_CHANGES,
    *map(_without_quirk, _CHANGES),
    start_scenario(
        "after-the-guest-wrote-its-tables",
        "A guest's write to page tables in use takes effect, and so does a second one.",
        *USUAL.lay(),
        *programs(),
        TABLES.create(),
        CODE.create(),
        _mapped_to(USUAL, 8, 0x104),
        USUAL.run(2),
        USUAL.run(8),
        _mapped_to(USUAL, 2, 0x107),
        USUAL.run(2),
        _mapped_to(USUAL, 8, 0x106),
        USUAL.run(8),
        _mapped_to(USUAL, 2, 0x106),
        USUAL.run(2),
        source="account_shadowed; kvm_mmu_slot_gfn_write_protect",
    ),
    start_scenario(
        "after-the-guest-wrote-across-two-entries",
        "A guest's write to the end of one entry of its page tables and the beginning of the next "
        "takes effect, at the level of pages and above.",
        *USUAL.lay(),
        *entries(at("a", 2), {1: _SECOND_GFN * PAGE_SIZE_BYTES | PLAIN}),
        *lowest_level(at("b"), GFNS),
        *lowest_level(at("b", 1), tuple(reversed(GFNS))),
        *programs(),
        *(TABLES.create(), CODE.create(), Slot(3, _SECOND_GFN, at("b"), 2).create()),
        USUAL.run(2),
        _SECOND.run(2),
        _across(USUAL.gfn + 2, 0, _SECOND_GFN + 1),
        _SECOND.run(2),
        USUAL.run(2),
        _across(USUAL.gfn + 2, 0, _SECOND_GFN),
        _SECOND.run(2),
        _across(USUAL.gfn + 3, 1, GFNS[0]),
        USUAL.run(2),
        source="kvm_mmu_track_write, detect_write_misaligned, get_written_sptes",
    ),
    start_scenario(
        "after-the-guest-wrote-tables-that-were-cut-off",
        "What a guest writes to page tables that nothing leads to takes effect once they are "
        "used again.",
        *USUAL.lay(),
        *entries(at("a", 1), {1: _FAR_GFN * PAGE_SIZE_BYTES | PLAIN}),
        *(ChangeHostMemory(at("b")), *lowest_level(at("b", 1), (GFNS[DATA],))),
        *entries(at("b"), {0: (_FAR_GFN + 1) * PAGE_SIZE_BYTES | PLAIN}),
        *programs(),
        *(TABLES.create(), CODE.create(), Slot(3, _FAR_GFN, at("b"), 2).create()),
        *(_FAR.run(0), _connected(False), _far_page(GFNS[3]), _connected(True), _FAR.run(0)),
        # The table of pages is one that KVM no longer write-protects, when it is cut off.
        *(_far_page(GFNS[DATA]), _connected(False), _far_page(GFNS[3]), _connected(True)),
        *(_FAR.run(0), _connected(False), _far_page(GFNS[DATA]), _connected(True), _FAR.run(0)),
        source="FNAME(fetch), mmu_sync_children; mmu_try_to_unsync_pages",
    ),
    start_scenario(
        "after-kvm-wrote-its-tables-for-the-guest",
        "What KVM writes to page tables where it emulates an instruction of the guest takes "
        "effect, be it that an address leads to a hole no longer, or to one from then on.",
        *_TO_A_HOLE.lay(),
        *programs(),
        *(TABLES.create(), CODE.create()),
        *(_TO_A_HOLE.access(LOADING, 4), _taken_in(4, GFNS[DATA]), _TO_A_HOLE.access(LOADING, 4)),
        *(
            operation
            for gfn in (_OTHER_HOLE, _HOLE, GFNS[3])
            for operation in (_taken_in(4, gfn), _TO_A_HOLE.access(LOADING, 4))
        ),
        *(_taken_in(2, GFNS[3]), _TO_A_HOLE.run(2), _TO_A_HOLE.run(3)),
        source="kvm_mmu_track_write, mmu_page_zap_pte; emulator_write_emulated",
    ),
    start_scenario(
        "after-the-other-space-wrote-beside-its-tables",
        "Page tables that address space 0 uses stay write-protected when unused entries in them "
        "are written in SMM.",
        *USUAL.lay(),
        *programs(),
        *(TABLES.create(), CODE.create(), replace(TABLES, slot=SMM << 16 | 1).create()),
        USUAL.run(2),
        *(write(USUAL.gfn + level, 0, 0x800, as_id=SMM) for level in range(3)),
        USUAL.run(2),
        source="kvm_gfn_is_write_tracked, mmu_try_to_unsync_pages",
        needs=("smm",),
        tags=("slow",),  # Linux 5.10 warns, which ends the lab's machine.
    ),
    start_scenario(
        "with-a-page-mapped-many-times",
        "A page that page tables map at many addresses follows the host, and is gone with its "
        "slot, at each of them.",
        *_OFTEN.lay(),
        *programs(),
        TABLES.create(),
        CODE.create(),
        *(_OFTEN.access(LOADING, page) for page in _ALIASES),
        ChangeHostMemory(at("a", 6), 1, "drop"),
        *(_OFTEN.access(LOADING, page) for page in _ALIASES[::6]),
        _OFTEN.access(STORING, _ALIASES[1], VALUE),
        *(_OFTEN.access(LOADING, page) for page in _ALIASES),
        CODE.delete(),
        Slot(2, 0x104, at("a", 4), pages=2).create(),
        *(_OFTEN.access(LOADING, page) for page in _ALIASES[::6]),
        source="pte_list_add, kvm_zap_all_rmap_sptes",
        needs=("sync_mmu",),
    ),
    start_scenario(
        "with-a-logged-page-mapped-many-times",
        "A write to a logged page is logged, whichever of the many addresses that map it is used.",
        *_OFTEN.lay(),
        *programs(),
        TABLES.create(),
        CODE.change(LOG_DIRTY_PAGES),
        *(_OFTEN.access(STORING, page, page) for page in _ALIASES),
        *(op for page in _ALIASES for op in (CODE.log(), _OFTEN.access(STORING, page, VALUE))),
        *(CODE.log(), CODE.log()),
        source="rmap_get_next, rmap_write_protect; api.rst 4.8",
    ),
    start_scenario(
        "beside-logged-pages",
        "A page that page tables call dirty, beside one that is accessed, is not logged for that.",
        *_BESIDE.lay(),
        *programs(),
        *(TABLES.create(), CODE.create(), _LOGGED.create()),
        _BESIDE.access(LOADING, 10),
        GetDirtyLog(3),
        _BESIDE.access(STORING, 13, VALUE),
        _BESIDE.access(LOADING, 14),
        *(GetDirtyLog(3), GetDirtyLog(3)),
        replace(_LOGGED, flags=0).create(),
        _BESIDE.access(STORING, 8, VALUE),
        *(_LOGGED.create(), GetDirtyLog(3)),
        _BESIDE.access(STORING, 15, VALUE),
        GetDirtyLog(3),
        source="FNAME(pte_prefetch), gfn_to_memslot_dirty_bitmap",
    ),
    start_scenario(
        "with-tables-in-a-huge-page",
        "A write to a page table within a huge page takes effect, whatever else the guest writes "
        "there.",
        *USUAL.lay(),
        *entries(at("a", 2), {0: (_LEAF.gfn + 3) * PAGE_SIZE_BYTES | PLAIN}),
        *(
            HostWrite(Place("huge", (_LEAF.page + 3) * PAGE_SIZE_BYTES + 8 * index + half), value)
            for index, gfn in enumerate(GFNS)
            for half, value in ((0, gfn * PAGE_SIZE_BYTES | PLAIN), (4, 0))
        ),
        *programs(),
        TABLES.create(),
        CODE.create(),
        _LARGE.create(),
        write(0x310, VALUE),
        USUAL.run(2),
        write(0x311, VALUE),
        _mapped_to(_LEAF, 2, 0x107),
        USUAL.run(2),
        write(0x312, VALUE),
        _mapped_to(_LEAF, 2, 0x106),
        USUAL.run(2),
        read(0x310),
        source="account_shadowed; kvm_mmu_gfn_disallow_lpage",
        mappings=(A, HUGE),
    ),
    start_scenario(
        "with-an-upper-table-in-a-huge-page",
        "A write to a table of page tables within a huge page takes effect, whatever else the "
        "guest writes there.",
        *USUAL.lay(),
        *entries(at("a", 1), {0: _UPPER_GFN * PAGE_SIZE_BYTES | PLAIN}),
        HostWrite(at("huge", 0x20), (USUAL.gfn + 3) * PAGE_SIZE_BYTES | PLAIN),
        HostWrite(Place("huge", 0x20 * PAGE_SIZE_BYTES + 4), 0),
        *lowest_level(at("b"), tuple(reversed(GFNS))),
        *programs(),
        *(TABLES.create(), CODE.create(), Slot(4, _SECOND_GFN, at("b")).create()),
        _LARGE.create(),
        *(write(0x310, VALUE), USUAL.run(2), write(0x311, VALUE)),
        *(
            operation
            for number, gfn in enumerate((_SECOND_GFN, USUAL.gfn + 3, _SECOND_GFN))
            for operation in (
                write(_UPPER_GFN, gfn * PAGE_SIZE_BYTES | PLAIN, 0),
                *(USUAL.run(2), write(0x312 + number, VALUE)),
            )
        ),
        read(0x310),
        source="account_shadowed: __kvm_write_track_add_gfn",
        mappings=(A, B, HUGE),
    ),
    start_scenario(
        "on-a-large-page-mapped-twice",
        "A large page is written through an entry that lets it, and not through another one that "
        "does not, whichever came first.",
        *USUAL.lay(),
        *entries(at("a", 2), {1: _TWICE | PLAIN | LARGE, 2: _TWICE | PRESENT | LARGE}),
        *entries(at("a", 2), {3: _TWICE | PLAIN | LARGE}),
        *programs(),
        *(TABLES.create(), CODE.create(), Slot(3, _TWICE // PAGE_SIZE_BYTES, at("b"), 4).create()),
        *(_at_large(LOADING, 1), _at_large(STORING, 1), _at_large(LOADING, 2, 2)),
        *(_at_large(STORING, 2), _at_large(LOADING, 3, 2), _at_large(STORING, 3)),
        *(_at_large(LOADING, 2), _at_large(STORING, 2, 2), _at_large(LOADING, 1)),
        source="FNAME(fetch), validate_direct_spte; Intel SDM vol. 3, 4.6",
        mappings=(A, B),
    ),
    start_scenario(
        "and-leave-tables-in-large-pages",
        "Pages that were page tables are such as any other once nothing shadows them.",
        *_INSIDE.lay(),
        *programs(),
        *(_LARGE.create(), CODE.create()),
        _INSIDE.run(2),
        CODE.delete(),
        _LARGE.create(),
        CODE.create(),
        _INSIDE.run(2),
        source="account_shadowed, unaccount_shadowed",
        mappings=(A, HUGE),
    ),
    start_scenario(
        "with-tables-at-any-gfn",
        "Page tables may begin at any gfn, whichever the lowest and the highest bits of it are.",
        *programs(),
        CODE.create(),
        *(operation for gfn in (0x201, 0x2FE, 0x7FF, 0x1_0003) for operation in _laid_at(gfn)),
        source="mmu_alloc_shadow_roots, kvm_mmu_get_shadow_page",
    ),
    start_scenario(
        "on-two-vcpus",
        "After a move of page tables no vCPU uses translations that it cached from them.",
        *USUAL.lay(),
        *programs(),
        TABLES.create(),
        CODE.create(),
        USUAL.run(2, 0),
        USUAL.run(2, 1),
        TABLES.move(0x200),
        USUAL.run(2, 1),
        USUAL.run(2, 0),
        TABLES.create(),
        USUAL.run(2, 1),
        USUAL.access(STORING, DATA, VALUE, 0),
        USUAL.access(LOADING, DATA, vcpu=1),
        vcpus=2,
    ),
    start_scenario(
        "where-firmware-is",
        "Code in a READONLY slot that ends at 4 GiB, like firmware, is run, moved and replaced.",
        Start(_TOP),
        _ROM.change(READONLY),
        Start(_TOP),
        Start(_TOP + 0x7000),
        _ROM.delete(),
        Start(_TOP),
        Slot(1, 0xFFFF0, at("b"), pages=8, flags=READONLY).create(),
        Start(_TOP),
        _ROM.delete(),
        _ROM.move(0xFFFF8),
        Start(_TOP + 0x8000),
        Start(_TOP),
        source="api.rst 4.35, KVM_MEM_READONLY",
        needs=("readonly_mem",),
        guest=Guest(gpa=0x80_0000),
    ),
)
"""All scenarios of vCPUs that start in slots of the scenario."""
