"""A slot follows its host mapping: the guest sees at once what the host does to its memory."""

from collections.abc import Iterator

from vmm.catalogue._build import A, B, Slot, at, creates, read, write
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    READONLY,
    AnyOperation,
    ChangeHostMemory,
    HostChangeKind,
    HostWrite,
    Inspect,
    Mapping,
    Scenario,
)
from vmm.scenario.reached import SPARSE_PAGES

_FILE = Mapping("file", 8, "memfd")
_SHARED = Mapping("shared", 8, "shared")
_HUGE = Mapping("huge", 1024, "thp")

_LONG = Mapping("long", SPARSE_PAGES + 600)
_WIDE = Mapping("wide", SPARSE_PAGES + 4608)
"""So large that only what is reached of them is filled, and compared after each change."""

_OF_LONG = (0, 1, 2, 31, 32, 63, 64, 65, 127, 128, 255, 256, 300, 509, 511, 512, 597, 598, 599)

_GFN = 0x100
_FIRST, _LAST = 1, 4
"""The pages that are changed, in the middle of a slot of six."""

_HERE = Slot(1, _GFN, at("a"), 6)
_ENDS = Slot(1, _GFN, at("a", 2), 4, READONLY)
_AT_ENDS = ((3, 1), (0, 1), (2, 2), (0, 2), (0, 4))
_AWAY = Slot(1, _GFN + 16, at("a"), 6)

_OF_WIDE = (0, 1, 2, 3, 8, 11)
_IN_WIDE, _AFTER_WIDE = Slot(1, _GFN, at("wide", 1024), 4), Slot(2, _GFN + 8, at("wide", 4096), 4)

_MMU_NOTIFIER = "KVM_CAP_SYNC_MMU; kvm_mmu_notifier_invalidate_range_start"


def _looks(turn: int) -> tuple[AnyOperation, ...]:
    """Read and write every page of the slot: the changed pages, and their neighbours."""
    pages = range(6)
    return (
        *(read(_GFN + page) for page in pages),
        *(write(_GFN + page, (turn << 16) + page, 0x200) for page in pages),
        *(read(_GFN + page, 0x200) for page in pages),
        Inspect(),
    )


def _dropped(first: int, pages: int) -> tuple[AnyOperation, ...]:
    """Drop some pages of the READONLY slot, and read all of it before and after."""
    look = tuple(read(_GFN + page) for page in range(_ENDS.pages))
    place = at("a", 2 + first)
    return (*look, ChangeHostMemory(place, pages, "drop"), *look, HostWrite(place, 0xD0 + first))


def _change(how: HostChangeKind, mapping: Mapping) -> ChangeHostMemory:
    return ChangeHostMemory(at(mapping.name, _FIRST), _LAST - _FIRST + 1, how)


def _follow(
    name: str,
    why: str,
    mapping: Mapping,
    *changes: HostChangeKind,
    made: tuple[AnyOperation, ...] = (),
    needs: tuple[str, ...] = (),
) -> Scenario:
    """Return a scenario that accesses a slot before the changes, and after each of them.

    ``made`` creates the slot, if that takes more than one operation.
    """
    return Scenario(
        name=f"follow-{name}",
        why=why,
        source=_MMU_NOTIFIER,
        tags=("follow",),
        needs=("sync_mmu", *needs),
        mappings=(mapping,),
        survey="none",
        operations=(
            *(made or (Slot(1, _GFN, at(mapping.name), 6).create(),)),
            *_looks(1),
            *(
                op
                for turn, how in enumerate(changes, 2)
                for op in (_change(how, mapping), *_looks(turn))
            ),
        ),
    )


_HIGH_GFN = (1 << 20) + 0x100
_CHANGES_ABOVE: tuple[HostChangeKind, ...] = ("drop", "map_fresh", "unmap", "map")


def _changed_above() -> Iterator[AnyOperation]:
    """Change two pages in the middle of a slot above 4 GiB in each way, and read all of it."""
    yield from (read(_HIGH_GFN + page) for page in range(4))
    for how in _CHANGES_ABOVE:
        yield ChangeHostMemory(at("a", 1), 2, how)
        yield from (read(_HIGH_GFN + page) for page in range(4))


SCENARIOS = (
    _follow("dropped-pages", "Private pages that are dropped read as zeros.", A, "drop"),
    _follow("dropped-file-pages", "Dropped pages of a file show the file again.", _FILE, "drop"),
    _follow("punched-pages", "Pages punched out of a file read as zeros.", _FILE, "punch"),
    _follow(
        "punched-shared-pages", "Punched pages of shared memory read as zeros.", _SHARED, "punch"
    ),
    _follow(
        "unmapped-pages",
        "Pages that are unmapped cannot be reached, and read as zeros when mapped again.",
        A,
        "unmap",
        "map",
    ),
    _follow(
        "unmapped-file-pages",
        "A file's pages that are unmapped cannot be reached, and come back when mapped again.",
        _FILE,
        "unmap",
        "map",
    ),
    _follow(
        "protected-pages",
        "Pages that the host has protected with PROT_NONE cannot be reached until they are "
        "allowed again.",
        A,
        "forbid",
        "allow",
    ),
    _follow(
        "after-moves",
        "After moves every page of a slot still follows its mapping.",
        A,
        "drop",
        "unmap",
        "map",
        made=(_AWAY.create(), read(_AWAY.gfn + _LAST), _AWAY.move(_GFN + 2), _AWAY.move(_GFN)),
    ),
    _follow(
        "after-other-flags",
        "After changes of flags every page of a slot still follows its mapping.",
        A,
        "drop",
        "unmap",
        "map",
        made=(
            _HERE.create(),
            read(_GFN + _LAST),
            _HERE.change(LOG_DIRTY_PAGES),
            write(_GFN + _LAST, 1),
            _HERE.change(0),
        ),
    ),
    _follow(
        "under-readonly",
        "A READONLY slot follows its mapping like any other, and goes on refusing writes.",
        A,
        "drop",
        "unmap",
        "map",
        "forbid",
        "allow",
        "map_fresh",
        made=(_HERE.change(READONLY),),
        needs=("readonly_mem",),
    ),
    Scenario(
        name="follow-at-the-ends-of-a-readonly-slot",
        why="The first and the last page of a READONLY slot follow their mapping, too, whether "
        "the page beside them changes with them or not.",
        source=_MMU_NOTIFIER,
        tags=("follow", "readonly"),
        needs=("sync_mmu", "readonly_mem"),
        mappings=(A,),
        operations=(
            _ENDS.create(),
            *(each for first, pages in _AT_ENDS for each in _dropped(first, pages)),
        ),
    ),
    _follow(
        "under-a-log",
        "A logged slot follows its mapping like any other.",
        A,
        "drop",
        "unmap",
        "map",
        "forbid",
        "allow",
        "map_fresh",
        made=(_HERE.change(LOG_DIRTY_PAGES),),
    ),
    Scenario(
        name="follow-above-4-gib",
        why="A slot above 4 GiB follows its mapping like any other.",
        source=_MMU_NOTIFIER,
        tags=("follow", "high"),
        needs=("sync_mmu",),
        mappings=(A,),
        survey="none",
        operations=(
            Slot(1, _HIGH_GFN, at("a"), 4).create(),
            *_changed_above(),
        ),
    ),
    Scenario(
        name="follow-in-every-slot",
        why="Two slots on the same memory both follow it, at pages that both had reached.",
        source=_MMU_NOTIFIER,
        tags=("follow",),
        needs=("sync_mmu",),
        mappings=(A, B),
        survey="none",
        operations=(
            *creates(Slot(1, _GFN, at("a"), 4), Slot(2, _GFN + 8, at("a", 1), 4)),
            *(read(gfn) for gfn in (_GFN + 1, _GFN + 3, _GFN + 8, _GFN + 10)),
            ChangeHostMemory(at("a", 1), 3),
            HostWrite(at("a", 3), 0x600D_600D),
            *(read(gfn) for gfn in (_GFN + 1, _GFN + 3, _GFN + 8, _GFN + 10, _GFN + 11)),
            *(read(gfn, 0) for gfn in (_GFN + 3, _GFN + 10)),
        ),
    ),
    Scenario(
        name="follow-a-long-change",
        why="When hundreds of pages change at once, the slot follows all of them, and no other.",
        source=_MMU_NOTIFIER,
        tags=("follow",),
        needs=("sync_mmu",),
        mappings=(_LONG,),
        survey="none",
        operations=(
            Slot(1, 0x203, at("long"), 600).create(),
            *(write(0x203 + page, page, 0x200) for page in _OF_LONG),
            ChangeHostMemory(at("long", 1), 598),
            *(read(0x203 + page, 0x200) for page in _OF_LONG),
        ),
    ),
    Scenario(
        name="follow-a-change-far-beyond-the-slot",
        why="When thousands of pages change around a slot, it follows as far as it goes, and a "
        "slot beyond them stays as it is.",
        source=f"{_MMU_NOTIFIER}; __kvm_handle_hva_range",
        tags=("follow",),
        needs=("sync_mmu",),
        mappings=(_WIDE,),
        survey="none",
        operations=(
            *creates(_IN_WIDE, _AFTER_WIDE),
            *(write(_GFN + page, page + 1, 0x200) for page in _OF_WIDE),
            ChangeHostMemory(at("wide"), 4096),
            *(read(_GFN + page, 0x200) for page in _OF_WIDE),
            *(write(_GFN + page, page + 2, 0x200) for page in _OF_WIDE),
            ChangeHostMemory(at("wide", 1026), 3070),
            *(read(_GFN + page, 0x200) for page in _OF_WIDE),
        ),
    ),
    Scenario(
        name="follow-within-huge-pages",
        why="Pages in the middle, at the end and at the start of huge pages are dropped alone, in "
        "the second huge page of a slot while the first is whole, too.",
        source=_MMU_NOTIFIER,
        tags=("follow", "huge"),
        needs=("sync_mmu",),
        mappings=(_HUGE,),
        survey="none",
        operations=(
            Slot(1, 0x200, at("huge"), 1024).create(),
            *(write(0x200 + page, page, 0x200) for page in (0, 99, 100, 101, 511, 512, 1023)),
            ChangeHostMemory(at("huge", 700), 1),
            *(read(0x200 + page, 0x200) for page in (700, 699, 701, 512)),
            ChangeHostMemory(at("huge", 100), 1),
            ChangeHostMemory(at("huge", 511), 2),
            *(read(0x200 + page, 0x200) for page in (0, 99, 100, 101, 510, 511, 512, 513, 1023)),
        ),
    ),
)
"""All scenarios in which the host changes the memory of a slot."""
