"""Creation: where a slot may be, what may back it, and what its neighbours are."""

from collections.abc import Iterator

from vmm.catalogue._build import API, HUGE, A, B, Slot, at, creates, deletes, read, write
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    AnyOperation,
    Guest,
    Inspect,
    Mapping,
    Scenario,
)

_ROW = tuple(Slot(number, 0xFF + number, at("a", number)) for number in range(1, 5))

_SHARING = tuple(Slot(number, 0x100 + 4 * number, at("a"), pages=3) for number in range(1, 5))

_THREE = Mapping("huge", 1536, "thp")
_PARTS = (
    Slot(1, 0x900, at("huge", 256), pages=1024),
    Slot(2, 0x1280, at("huge", 128), pages=1152),
    Slot(3, 0x19FF, at("huge", 511), pages=2),
)
"""In line with the three huge pages of their memory; the first has as many pages as two of them."""

_PLACES = (
    Scenario(
        name="create-one-page",
        why="A gpa that was MMIO reaches host memory as soon as a slot covers it.",
        source=API,
        tags=("create",),
        mappings=(A,),
        operations=creates(Slot(1, 0x100, at("a"))),
    ),
    Scenario(
        name="create-at-gpa-0",
        why="Gfn 0 is a gfn like any other, and does not mark an unused entry.",
        source=API,
        tags=("create",),
        mappings=(A,),
        operations=creates(Slot(1, 0, at("a"), pages=2)),
    ),
    Scenario(
        name="create-last-page-below-4-gib",
        why="The last page below 4 GiB is an ordinary place for a slot.",
        source=API,
        tags=("create",),
        mappings=(A,),
        guest=Guest(gpa=0x10000),
        operations=creates(Slot(1, 0xFFFFF, at("a"))),
    ),
    Scenario(
        name="create-upward",
        why="Each new slot is the highest: it travels all the way to the front of the array.",
        source="kvm_memslot_move_forward",
        tags=("create", "array"),
        mappings=(A,),
        operations=creates(*_ROW),
    ),
    Scenario(
        name="create-downward",
        why="Each new slot is the lowest: it stays at the back of the array.",
        source="kvm_memslot_insert_back",
        tags=("create", "array"),
        mappings=(A,),
        operations=creates(*reversed(_ROW)),
    ),
    Scenario(
        name="create-into-an-exact-gap",
        why="A slot fits between two others with no page to spare on either side.",
        source=API,
        tags=("create", "adjacent"),
        mappings=(A, B),
        operations=creates(
            Slot(1, 0x100, at("a"), pages=2),
            Slot(2, 0x104, at("a", 4), pages=2),
            Slot(3, 0x102, at("b"), pages=2),
        ),
    ),
)

_CHURN = tuple(Slot(2, gfn, at("b", gfn % 8)) for gfn in range(0x104, 0x10A))

_STAYING = Scenario(
    name="create-and-stay-while-others-come-and-go",
    why="A slot that nobody changes stays the same after any number of changes beside it.",
    source=API,
    tags=("create", "delete"),
    mappings=(A, B),
    operations=(
        Slot(1, 0x102, at("a"), pages=2).create(),
        *(operation for slot in _CHURN for operation in (slot.create(), slot.delete())),
    ),
)

_GIANT = 1 << 18
"""Pages in a 1 GiB page; the hva of unmapped memory begins at a multiple of that."""

_BACKINGS = (
    Scenario(
        name="create-against-the-order-of-hvas",
        why="The order of gpas and the order of hvas have nothing to do with each other.",
        source=API,
        tags=("create", "hva"),
        mappings=(A,),
        operations=creates(
            Slot(1, 0x100, at("a", 4), pages=2), Slot(2, 0x102, at("a", 2), pages=2)
        ),
    ),
    Scenario(
        name="create-two-slots-on-the-same-pages",
        why="Two slots may share host pages, at different offsets: each shows the other's writes.",
        source=API,
        tags=("create", "hva"),
        mappings=(A,),
        operations=creates(Slot(1, 0x100, at("a"), pages=4), Slot(2, 0x110, at("a", 2), pages=4)),
    ),
    Scenario(
        name="create-four-slots-on-the-same-pages",
        why="Any number of slots may share an hva; deleting one leaves the memory of the others.",
        source=API,
        tags=("create", "hva", "delete"),
        mappings=(A,),
        operations=(*creates(*_SHARING), *deletes(*_SHARING[1:3]), _SHARING[1].create()),
    ),
    Scenario(
        name="create-on-every-kind-of-4-kib-memory",
        why="A slot works alike on private, shared and file-backed memory.",
        source=API,
        tags=("create", "hva"),
        mappings=(A, Mapping("shared", 2, "shared"), Mapping("file", 2, "memfd")),
        operations=creates(
            Slot(1, 0x100, at("a"), pages=2),
            Slot(2, 0x102, at("shared"), pages=2),
            Slot(3, 0x104, at("file"), pages=2),
        ),
    ),
    Scenario(
        name="create-on-transparent-huge-pages",
        why="A slot that begins and ends inside a huge page reaches exactly its own pages.",
        source="edd4fa37baa6",
        tags=("create", "huge"),
        mappings=(HUGE,),
        operations=creates(Slot(1, 0x3FE, at("huge", 509), pages=5)),
    ),
    Scenario(
        name="create-in-line-with-huge-pages",
        why="A slot aligned with huge pages reaches nothing of a huge page beyond its own ends.",
        source="kvm_alloc_memslot_metadata: disallow_lpage at the ends",
        tags=("create", "huge"),
        mappings=(HUGE,),
        operations=creates(Slot(1, 0x2FE, at("huge", 254), pages=746)),
    ),
    Scenario(
        name="create-all-but-a-page-of-a-huge-page",
        why="A slot with all but the first, or the last, page of a huge page reaches just those.",
        source="kvm_alloc_memslot_metadata: disallow_lpage at the ends",
        tags=("create", "huge"),
        mappings=(HUGE,),
        survey="none",
        operations=(
            *creates(Slot(2, 0x801, at("huge", 1), pages=511), Slot(3, 0xC00, at("huge"), 513)),
            *(read(gfn) for gfn in (0x802, 0x800, 0xE00, 0xE01)),
        ),
    ),
    Scenario(
        name="create-on-parts-of-huge-pages",
        why="A slot that begins and ends within huge pages reaches nothing beyond its ends, "
        "whether there is none, or one, between them.",
        source="kvm_alloc_memslot_metadata: lpages, disallow_lpage; lpage_info_slot, gfn_to_index",
        tags=("create", "huge"),
        mappings=(_THREE,),
        survey="none",
        operations=(
            *creates(*_PARTS),
            # The last huge page first: its beginning is as far from that as the slot's.
            *(read(gfn) for gfn in (0xC00, 0xD00, 0xCFF, 0xA00, 0xBFF, 0x900, 0x8FF)),
            *(read(gfn) for gfn in (0x1600, 0x1700, 0x16FF, 0x1400, 0x15FF, 0x1280, 0x127F)),
            *(read(gfn) for gfn in (0x1A00, 0x1A01, 0x19FF, 0x19FE)),
            *(write(gfn, gfn) for gfn in (0xC00, 0x9FF, 0x1600, 0x13FF, 0x1A00, 0x19FF)),
            Inspect(),
        ),
    ),
    Scenario(
        name="create-huge-pages-touched-in-the-middle",
        why="Every 4 KiB page of a huge page is reached, whichever of them was touched first.",
        source="kvm_mmu_hugepage_adjust: fault->pfn &= ~mask",
        tags=("create", "huge"),
        mappings=(HUGE,),
        survey="none",
        operations=(
            Slot(1, 0x200, at("huge"), pages=1024).create(),
            *(read(gfn) for gfn in (0x345, 0x200, 0x344, 0x346, 0x3FF)),
            *(write(gfn, gfn) for gfn in (0x5AB, 0x400, 0x5AA, 0x5AC, 0x5FF)),
            *(read(gfn) for gfn in (0x1FF, 0x5AB, 0x400, 0x345, 0x600)),
            Inspect(),
        ),
    ),
    Scenario(
        name="create-out-of-line-with-huge-pages",
        why="If gpa and hva are aligned differently, no huge page is mapped, even in the middle.",
        source="kvm_alloc_memslot_metadata: (slot->base_gfn ^ ugfn)",
        tags=("create", "huge"),
        mappings=(HUGE,),
        operations=creates(
            Slot(1, 0x201, at("huge"), pages=1024),
            Slot(2, 0x800, at("huge", 1), pages=512),  # It has all of its last huge page.
        ),
    ),
    Scenario(
        name="create-in-line-with-giant-pages",
        why="A 1 GiB page is mapped only if the slot holds all of it.",
        source="kvm_alloc_memslot_metadata: disallow_lpage at the ends",
        tags=("create", "move", "huge"),
        mappings=(Mapping("nowhere", 2 * _GIANT, "unmapped"),),
        survey="none",
        operations=(
            Slot(1, 4 * _GIANT, at("nowhere"), pages=8).create(),
            Slot(2, 6 * _GIANT - 8, at("nowhere", _GIANT - 8), pages=8).create(),
            Slot(3, 7 * _GIANT - 8, at("nowhere", _GIANT - 8), pages=16).create(),
            Slot(4, 8 * _GIANT, at("nowhere"), pages=_GIANT).create(),
            Slot(1, 4 * _GIANT, at("nowhere"), pages=8).move(4 * _GIANT + 0x200),
            Slot(2, 6 * _GIANT - 8, at("nowhere", _GIANT - 8), pages=8).move(11 * _GIANT - 8),
            Slot(3, 7 * _GIANT - 8, at("nowhere", _GIANT - 8), pages=16).delete(),
        ),
    ),
    Scenario(
        name="create-on-hugetlb",
        why="hugetlb memory is reached page by page, like any other.",
        source="edd4fa37baa6",
        tags=("create", "huge"),
        mappings=(Mapping("tlb", 512, "hugetlb"),),
        needs=("hugetlb_pages",),
        operations=creates(Slot(1, 0x200, at("tlb"), pages=512)),
    ),
    Scenario(
        name="create-on-a-memfd-of-huge-pages",
        why="A hugetlb memfd is reached page by page, whatever the alignment of gpa and hva.",
        source="edd4fa37baa6; MFD_HUGETLB",
        tags=("create", "huge", "slow"),
        mappings=(Mapping("tlb", 1024, "hugetlb_memfd"),),
        needs=("hugetlb_pages",),
        operations=creates(
            Slot(1, 0x200, at("tlb"), pages=512), Slot(2, 0x401, at("tlb", 256), pages=768)
        ),
    ),
)


def _of_sizes(*sizes: int) -> Scenario:
    """Return a scenario with slots of several sizes, each with a hole after it."""
    return Scenario(
        name=f"create-{'-'.join(map(str, sizes))}-pages",
        why="All pages of a slot are reached, and none beyond, whatever their number.",
        source=API,
        tags=("create", "size"),
        mappings=tuple(Mapping(f"of-{pages}", pages) for pages in sizes),
        operations=creates(
            *(
                Slot(index, 0x100 + index + sum(sizes[:index]), at(f"of-{pages}"), pages)
                for index, pages in enumerate(sizes)
            )
        ),
    )


def _page_by_page(pages: int) -> Iterator[AnyOperation]:
    """Touch each page of a slot too large for a survey to visit them all, and the page after it."""
    slot = Slot(1, 0x1000, at("large"), pages)
    elsewhere = 0x4001
    yield slot.create()
    yield from (read(slot.gfn + page) for page in (*range(0, pages, 8), pages))
    yield slot.move(elsewhere)
    yield from (read(elsewhere + page) for page in range(pages + 1))
    yield slot.move(elsewhere, LOG_DIRTY_PAGES)
    for chosen in (True, False):
        written = (page for page in range(pages) if (page % 7 < 4) is chosen)
        yield from (write(elsewhere + page, page) for page in written)
        yield slot.log()
    yield slot.delete()
    yield from (read(elsewhere + page) for page in range(0, pages, 64))


def _large(how_many: str, pages: int, *tags: str) -> Scenario:
    return Scenario(
        name=f"create-{how_many}-of-pages",
        why="Each page of a large slot is reached, moved, logged and deleted like the first one.",
        source=API,
        tags=("create", "size", "move", "dirty", "delete", *tags),
        mappings=(Mapping("large", pages),),
        survey="none",
        operations=tuple(_page_by_page(pages)),
    )


_SIZES = (
    _of_sizes(1, 2, 3, 4),
    _of_sizes(63, 64, 65),
    _of_sizes(128),
    _of_sizes(513),
    _large("hundreds", 579),
    _large("thousands", 2051, "slow"),
)


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return all scenarios of creation; one is at the kernel's last gfn."""
    last = Scenario(
        name="create-at-the-last-gfn",
        why="A slot may hold the last gfn that the MMU maps, and no other slot is affected.",
        source="kvm_mmu_max_gfn",
        tags=("create", "limit"),
        mappings=(A, B),
        operations=creates(Slot(1, 0x100, at("a")), Slot(2, features.last_gfn, at("b"))),
    )
    return (*_PLACES, last, _STAYING, *_BACKINGS, *_SIZES)
