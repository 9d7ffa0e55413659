"""A slot follows its host mapping when other memory is mapped there, or its file changes."""

from typing import Unpack

from vmm.catalogue._area import Area, Own
from vmm.catalogue._build import Slot, at, creates, read, write
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    READONLY,
    AnyOperation,
    ChangeHostMemory,
    GetDirtyLog,
    HostChangeKind,
    HostWrite,
    Inspect,
    Mapping,
    Scenario,
)

_A = Mapping("a", 6)
_FILE = Mapping("file", 6, "memfd")
_COPY = Mapping("copy", 6, "private_file")
_AGAIN = Mapping("again", 6, "memfd", of="file")
_ASIDE = Mapping("aside", 6, "private_file", of="file")

_GFN = 0x100
_OTHER_GFN = 0x110
_PAGES = range(6)
_NOTIFIER = "KVM_CAP_SYNC_MMU; kvm_mmu_notifier_invalidate_range_start"


def _change(how: HostChangeKind, mapping: Mapping, page: int, pages: int) -> ChangeHostMemory:
    return ChangeHostMemory(at(mapping.name, page), pages, how)


def _over(mapping: Mapping, page: int, pages: int, source: int = 0) -> ChangeHostMemory:
    """Map pages of the file over those of a mapping."""
    return ChangeHostMemory(at(mapping.name, page), pages, "map_file", at("file", source))


def _looks(turn: int, gfn: int = _GFN) -> tuple[AnyOperation, ...]:
    """Read and write every page of a slot: the changed pages, and their neighbours."""
    return (
        *(read(gfn + page) for page in _PAGES),
        *(write(gfn + page, (turn << 16) + page, 0x200) for page in _PAGES),
        *(read(gfn + page, 0x200) for page in _PAGES),
        Inspect(),
    )


_area = Area(
    prefix="follow-",
    tags=("follow",),
    source=_NOTIFIER,
    needs=("sync_mmu",),
    survey="none",
)


def _follow(
    name: str,
    why: str,
    memory: tuple[Mapping, ...],
    *changes: AnyOperation,
    flags: int = 0,
    **own: Unpack[Own],
) -> Scenario:
    """Return a scenario that accesses a slot on each mapping before, between and after changes."""
    slots = [
        Slot(number + 1, _GFN + 0x10 * number, at(mapping.name), 6, flags)
        for number, mapping in enumerate(memory)
    ]

    def look(turn: int) -> tuple[AnyOperation, ...]:
        logs = tuple(slot.log() for slot in slots if flags & LOG_DIRTY_PAGES)
        looks = (op for slot in slots for op in _looks(turn * 8 + slot.slot, slot.gfn))
        return (*looks, *logs)

    own["mappings"] = memory
    return _area(
        name,
        why,
        *creates(*slots),
        *look(1),
        *(op for turn, change in enumerate(changes, 2) for op in (change, *look(turn))),
        **own,
    )


def _first_read(
    name: str, why: str, mapping: Mapping, *changes: HostChangeKind, **own: Unpack[Own]
) -> Scenario:
    """Return a scenario whose guest only reads before the first change, and writes after each."""
    own["mappings"] = (mapping,)
    return _area(
        name,
        why,
        Slot(1, _GFN, at(mapping.name), 6).create(),
        *(read(_GFN + page) for page in _PAGES),
        *(
            op
            for turn, how in enumerate(changes, 1)
            for op in (_change(how, mapping, 1, 3), *_looks(turn))
        ),
        **own,
    )


def _settled(
    how: HostChangeKind, page: int, pages: int
) -> tuple[ChangeHostMemory, ChangeHostMemory]:
    """Return two operations: register pages with userfaultfd, and settle them again."""
    return _change(how, _A, page, pages), _change("settle", _A, page, pages)


_HUGE = Mapping("huge", 1024, "thp")
_HUGE_FILE = Mapping("tlb", 1024, "hugetlb_memfd")
_HUGE_PAGES = (0, 1, 99, 510, 511, 512, 513, 1023)
_ALIKE = (1, 2, 4)
"""Pages with equal content, which can be merged."""

SCENARIOS = (
    _follow(
        "write-protected-pages",
        "The guest reads pages that the host may only read, and cannot write them until it may "
        "again.",
        (_A,),
        _change("write_protect", _A, 1, 3),
        _change("allow", _A, 1, 3),
    ),
    _follow(
        "write-protected-file-pages",
        "The guest reads file pages that the host may only read, and cannot write them until it "
        "may again.",
        (_FILE,),
        _change("write_protect", _FILE, 0, 2),
        _change("write_protect", _FILE, 4, 2),
        _change("allow", _FILE, 0, 6),
    ),
    _first_read(
        "write-protected-after-reads",
        "The guest can write pages that it has read only if the host may write them.",
        _A,
        "write_protect",
        "allow",
    ),
    _follow(
        "write-protected-and-logged",
        "A write that fails on a protected page is in no dirty log.",
        (_A,),
        _change("write_protect", _A, 1, 3),
        _change("allow", _A, 2, 1),
        flags=LOG_DIRTY_PAGES,
    ),
    _follow(
        "write-protected-under-readonly",
        "A READONLY slot is read as before, whatever the host may do with its memory.",
        (_A,),
        _change("write_protect", _A, 1, 3),
        _change("forbid", _A, 2, 3),
        _change("allow", _A, 1, 4),
        flags=READONLY,
        needs=("readonly_mem",),
    ),
    _follow(
        "fresh-memory-over-anonymous",
        "Fresh memory that is mapped over pages in use reads as zeros.",
        (_A,),
        _change("map_fresh", _A, 1, 3),
        _change("map_fresh", _A, 3, 3),
    ),
    _follow(
        "fresh-memory-over-a-file",
        "Fresh memory over a file's pages reads as zeros; the file is whole when it is mapped "
        "again.",
        (_FILE,),
        _change("map_fresh", _FILE, 1, 3),
        _change("map", _FILE, 2, 3),
        _change("map", _FILE, 0, 6),
    ),
    _follow(
        "fresh-memory-in-a-logged-slot",
        "Pages that the host replaces are in no dirty log, but guest writes to the new ones are.",
        (_FILE,),
        _change("map_fresh", _FILE, 0, 2),
        _change("map", _FILE, 1, 1),
        flags=LOG_DIRTY_PAGES,
    ),
    _follow(
        "a-file-over-anonymous",
        "A file that is mapped over pages in use is what the guest reads and writes there.",
        (_A, _FILE),
        _over(_A, 1, 3),
        _over(_A, 2, 3, 3),
        _change("map", _A, 2, 1),
        _change("unmap", _A, 0, 4),
        _change("map", _A, 0, 6),
    ),
    _follow(
        "a-file-over-itself",
        "A page of a file mapped over another page of it is seen in both places.",
        (_FILE,),
        _over(_FILE, 0, 2, 4),
        _change("punch", _FILE, 4, 1),
        _change("map", _FILE, 0, 2),
    ),
    _follow(
        "dropped-pages-of-a-private-file",
        "When a private mapping of a file is dropped, what was written to it is gone and the file "
        "shows again, as when a snapshot is restored.",
        (_COPY,),
        _change("drop", _COPY, 1, 3),
        _change("drop", _COPY, 0, 6),
    ),
    _first_read(
        "private-file-pages-after-reads",
        "Pages of a private file that the guest has only read are copied when it writes them.",
        _COPY,
        "drop",
        "unmap",
        "map",
    ),
    _follow(
        "private-file-protected",
        "Pages of a private file are protected, and mapped over, like others.",
        (_COPY,),
        _change("write_protect", _COPY, 0, 3),
        _change("map_fresh", _COPY, 2, 2),
        _change("allow", _COPY, 0, 6),
        _change("map", _COPY, 0, 6),
    ),
    _follow(
        "a-private-file-in-a-logged-slot",
        "Copies in a private mapping are in the dirty log if a guest write made them.",
        (_COPY,),
        _change("drop", _COPY, 1, 3),
        flags=LOG_DIRTY_PAGES,
    ),
    _follow(
        "a-truncated-file",
        "Pages beyond the end of a file cannot be reached, and are zeros when it grows again.",
        (_FILE,),
        _change("truncate", _FILE, 2, 4),
        _change("truncate", _FILE, 4, 2),
        _change("extend", _FILE, 2, 4),
        source="api.rst 4.35; hva_to_pfn (VM_FAULT_SIGBUS)",
    ),
    _follow(
        "a-truncated-private-file",
        "Beyond the end of its file a private mapping has no copies either.",
        (_COPY,),
        _change("truncate", _COPY, 3, 3),
        _change("extend", _COPY, 3, 3),
        source="unmap_mapping_range, even_cows",
    ),
    _follow(
        "two-mappings-of-a-file",
        "Slots on two mappings of one file are the same memory, whatever is done through either.",
        (_FILE, _AGAIN),
        _change("unmap", _FILE, 1, 2),
        _change("punch", _AGAIN, 2, 2),
        _change("map", _FILE, 1, 2),
        _change("write_protect", _AGAIN, 3, 3),
        _change("truncate", _FILE, 4, 2),
        _change("extend", _FILE, 4, 2),
    ),
    _follow(
        "a-private-view-of-a-file",
        "Copies of a private mapping keep what was written to them; other pages show what is "
        "written to the file.",
        (_FILE, _ASIDE),
        _change("drop", _ASIDE, 0, 3),
        _change("punch", _FILE, 1, 3),
        _change("truncate", _FILE, 3, 3),
    ),
    _follow(
        "paged-out-pages",
        "Pages that the host wrote to swap, or to their file, come back when they are used.",
        (_A, _FILE, _COPY),
        _change("page_out", _A, 0, 6),
        _change("page_out", _FILE, 1, 3),
        _change("page_out", _COPY, 0, 6),
        source="madvise_cold_or_pageout_pte_range; mmu_notifier_clear_flush_young",
    ),
    _follow(
        "paged-out-pages-in-a-logged-slot",
        "A write to a page that was in swap, or in its file, is in the dirty log.",
        (_A, _FILE),
        _change("page_out", _A, 0, 6),
        _change("page_out", _FILE, 1, 3),
        flags=LOG_DIRTY_PAGES,
        tags=("slow",),
        source="madvise_cold_or_pageout_pte_range; mmu_notifier_clear_flush_young",
    ),
    _follow(
        "moved-pages-in-a-logged-slot",
        "A write to a page that mremap has moved back is in the dirty log, and no other page is.",
        (_A,),
        _change("move_away", _A, 1, 3),
        _change("move_back", _A, 1, 3),
        flags=LOG_DIRTY_PAGES,
        tags=("slow",),
    ),
    _follow(
        "a-truncated-file-in-a-logged-slot",
        "A write to a page of a file that has grown again is in the dirty log.",
        (_FILE,),
        _change("truncate", _FILE, 2, 4),
        _change("extend", _FILE, 2, 4),
        flags=LOG_DIRTY_PAGES,
        tags=("slow",),
        source="api.rst 4.35; hva_to_pfn (VM_FAULT_SIGBUS)",
    ),
    _follow(
        "pages-that-are-moved-away",
        "Pages that mremap moves away cannot be reached; moved back they are as they were.",
        (_A,),
        _change("move_away", _A, 1, 3),
        _change("move_away", _A, 5, 1),
        _change("move_back", _A, 1, 2),
        _change("move_back", _A, 3, 1),
        _change("move_back", _A, 5, 1),
    ),
    _follow(
        "pages-that-a-child-shares",
        "A page that is written while a forked child shares it is copied: the slot shows the "
        "copy, the child the old content.",
        (_A, _COPY, _FILE),
        _change("fork", _A, 0, 1),
        _change("drop", _COPY, 1, 2),
        _change("reap", _A, 0, 1),
        source="do_wp_page; mmu_notifier_invalidate_range_start",
    ),
    _follow(
        "logged-pages-that-a-child-shares",
        "A page that is copied because a child shares it is in the dirty log when it is written.",
        (_A,),
        _change("fork", _A, 0, 1),
        _change("reap", _A, 0, 1),
        _change("fork", _A, 0, 1),
        flags=LOG_DIRTY_PAGES,
        source="do_wp_page; mmu_notifier_invalidate_range_start",
    ),
    _follow(
        "pages-that-are-fetched-later",
        "Pages that userfaultfd fetches at the first access, as after a migration, keep their "
        "content.",
        (_A,),
        *_settled("fetch_later", 1, 3),
        *_settled("fetch_later", 0, 6),
        source="Documentation/admin-guide/mm/userfaultfd.rst; hva_to_pfn_slow",
        tags=("slow",),
    ),
    _first_read(
        "pages-fetched-after-reads",
        "Pages that the guest has read before are fetched again, by reads and by writes.",
        _A,
        "fetch_later",
        "settle",
        tags=("slow",),
    ),
    _follow(
        "pages-fetched-in-a-logged-slot",
        "A fetched page is in the dirty log once the guest writes it, and not before.",
        (_A,),
        *_settled("fetch_later", 1, 3),
        flags=LOG_DIRTY_PAGES,
        source="Documentation/admin-guide/mm/userfaultfd.rst; hva_to_pfn_slow",
        tags=("slow",),
    ),
    _follow(
        "pages-that-are-guarded",
        "Any writer to pages that userfaultfd guards, as for a snapshot, is stopped before they "
        "change, the guest too.",
        (_A,),
        *_settled("guard", 1, 3),
        *_settled("guard", 0, 6),
        source="Documentation/admin-guide/mm/userfaultfd.rst; change_protection",
        tags=("slow",),
    ),
    _follow(
        "guarded-pages-in-a-logged-slot",
        "A write that userfaultfd has stopped is in the dirty log once it is done.",
        (_A,),
        *_settled("guard", 1, 3),
        flags=LOG_DIRTY_PAGES,
        source="Documentation/admin-guide/mm/userfaultfd.rst; change_protection",
        tags=("slow",),
    ),
    Scenario(
        name="follow-collapsed-pages",
        why="Small pages that the host collapses into a huge page keep their place and content.",
        source="MADV_COLLAPSE; collapse_huge_page, mmu_notifier_invalidate_range_start",
        tags=("follow", "huge"),
        needs=("sync_mmu", "collapse"),
        mappings=(_HUGE,),
        survey="none",
        operations=(
            Slot(1, 0x200, at("huge"), 1024, LOG_DIRTY_PAGES).create(),
            _change("drop", _HUGE, 100, 1),
            *(write(0x200 + page, page + 1, 0x200) for page in _HUGE_PAGES),
            _change("collapse", _HUGE, 0, 1024),
            *(read(0x200 + page, 0x200) for page in (*_HUGE_PAGES, 100)),
            *(write(0x200 + page, page + 2, 0x300) for page in (0, 512, 1023)),
            GetDirtyLog(1),
            _change("drop", _HUGE, 511, 2),
            *(read(0x200 + page, 0x200) for page in _HUGE_PAGES),
            _change("collapse", _HUGE, 0, 1024),
            *(read(0x200 + page, 0x300) for page in _HUGE_PAGES),
        ),
    ),
    Scenario(
        name="follow-punched-huge-pages",
        why="The guest reads zeros where a huge page is punched out of its file, and gets a new "
        "one when it writes; its neighbours stay.",
        source=f"{_NOTIFIER}; hugetlbfs_punch_hole",
        tags=("follow", "huge", "slow"),
        needs=("sync_mmu", "hugetlb_pages"),
        mappings=(_HUGE_FILE,),
        survey="none",
        operations=(
            Slot(1, 0x200, at("tlb"), 1024, LOG_DIRTY_PAGES).create(),
            *(write(0x200 + page, page + 1, 0x200) for page in _HUGE_PAGES),
            Slot(1, 0x200, at("tlb"), 1024).log(),
            _change("punch", _HUGE_FILE, 512, 512),
            *(read(0x200 + page, 0x200) for page in _HUGE_PAGES),
            *(write(0x200 + page, page + 2, 0x300) for page in (511, 513)),
            Slot(1, 0x200, at("tlb"), 1024).log(),
            Inspect(),
            _change("punch", _HUGE_FILE, 0, 1024),
            *(read(0x200 + page, 0x300) for page in _HUGE_PAGES),
            Inspect(),
        ),
    ),
    Scenario(
        name="follow-merged-pages",
        why="Pages that KSM has merged are separate again when one of them is written.",
        source="Documentation/admin-guide/mm/ksm.rst; write_protect_page, replace_page",
        tags=("follow", "slow"),
        needs=("sync_mmu", "ksm"),
        mappings=(_A,),
        survey="none",
        operations=(
            Slot(1, _GFN, at("a"), 6, LOG_DIRTY_PAGES).create(),
            _change("drop", _A, 0, 6),
            *(write(_GFN + page, 0x5A5A5A5A) for page in _ALIKE),
            Slot(1, _GFN, at("a"), 6).log(),
            _change("merge", _A, 0, 6),
            *(read(_GFN + page) for page in _ALIKE),
            write(_GFN + 2, 0x1234),
            *(read(_GFN + page) for page in _ALIKE),
            Slot(1, _GFN, at("a"), 6).log(),
            HostWrite(at("a", 4), 0x4321),
            *(read(_GFN + page, 0) for page in _ALIKE),
            *(read(_GFN + page) for page in _ALIKE),
        ),
    ),
    Scenario(
        name="follow-a-file-that-is-written-elsewhere",
        why="A page of a private mapping that nobody wrote shows what the host and another slot "
        "write to the file.",
        source=_NOTIFIER,
        tags=("follow",),
        needs=("sync_mmu",),
        mappings=(_FILE, _ASIDE),
        survey="none",
        operations=(
            *creates(Slot(1, _GFN, at("file"), 6), Slot(2, _OTHER_GFN, at("aside"), 6)),
            *(read(_OTHER_GFN + page) for page in _PAGES),
            write(_GFN + 1, 0x1111),
            HostWrite(at("file", 2), 0x2222),
            *(read(_OTHER_GFN + page) for page in _PAGES),
            read(_OTHER_GFN + 2, 0),
            write(_OTHER_GFN + 1, 0x3333, 0x200),
            write(_GFN + 1, 0x4444, 0x300),
            write(_GFN + 3, 0x5555, 0x300),
            *(read(_OTHER_GFN + page, 0x300) for page in (1, 3)),
            *(read(_GFN + page, 0x200) for page in (1, 3)),
        ),
    ),
)
"""All scenarios in which other memory is mapped under a slot, or its file changes."""
