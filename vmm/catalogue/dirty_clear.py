"""KVM_CLEAR_DIRTY_LOG: which ranges may be cleared, and that nothing else is cleared."""

from collections.abc import Iterator
from dataclasses import replace

import msgspec

from vmm.catalogue._build import A, B, Slot, at, creates, write
from vmm.catalogue._dirty import (
    INITIALLY_SET,
    MANUAL,
    clear,
    clearing,
    clearing_initially_set,
    writes,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    AnyOperation,
    ClearDirtyLog,
    EnableCap,
    GetDirtyLog,
    Mapping,
    Scenario,
    Sweep,
)

_HUGE_MEMORY = {
    "thp": Mapping("memory", 1024, "thp"),
    "hugetlb": Mapping("memory", 1024, "hugetlb"),
}
_HUGE_NEEDS = {"thp": (), "hugetlb": ("hugetlb_pages",)}
_SLOT = Slot(1, 0x200, at("memory"), 130, LOG_DIRTY_PAGES)
_SMALL = Slot(1, 0x100, at("a"), 4, LOG_DIRTY_PAGES)
_PLAIN = replace(_SMALL, flags=0)
_OTHER = Slot(2, 0x104, at("b"), 4, LOG_DIRTY_PAGES)

_SIZES = (1, 63, 64, 65, 127, 128, 130, 512, 513)
_BORDERS = (0, 1, 62, 63, 64, 65, 127, 128, 129, 191, 192, 511, 512)
"""Pages around the borders of words, which are worth clearing from."""


def _grid(pages: int) -> Scenario:
    """Clear every interesting number of pages, from every interesting page on."""
    slot = replace(_SLOT, pages=pages)
    marks = sorted({page for page in (*_BORDERS, pages - 1) if page < pages})
    operations: list[AnyOperation] = [MANUAL, slot.create(), *writes(slot, *marks)]
    for first in sorted({0, 1, 63, 64, 128, pages - 1, pages, pages + 1, pages + 63 & -64}):
        for count in sorted({0, 1, 63, 64, 65, 128, max(pages - first, 0), pages + 1}):
            operations += [clear(slot, first, count), slot.log()]
            if first % 64 == 0 and 0 < count <= pages - first:
                # Some of these were cleared: make them dirty again, and check.
                operations += [*writes(slot, *marks)]
    return clearing(
        f"clear-grid-of-{pages}-pages",
        "A range to clear begins at a multiple of 64 pages, and ends at one or at the slot's end.",
        *operations,
        slot.log(),
        source="76d58e0f07ec, 98938aa8edd6; kvm_clear_dirty_log_protect",
    )


_CLEARS = (
    clearing(
        "clear-one-page",
        "A bit clears only its page, which is dirty again when it is written again.",
        MANUAL,
        _SLOT.create(),
        *writes(_SLOT, 0, 63, 64, 65, 127, 128, 129),
        clear(_SLOT, 64, 64, 64),
        _SLOT.log(),
        *writes(_SLOT, 64, value=2),
        _SLOT.log(),
        clear(_SLOT, 128, 2, 129),
        _SLOT.log(),
        clear(_SLOT, 0, 64, 0, 1, 63),
        _SLOT.log(),
        clear(_SLOT, 0, 130, 127),  # Words of the bitmap before this one clear nothing.
        _SLOT.log(),
    ),
    clearing(
        "clear-no-page",
        "A bitmap without bits clears nothing, and neither does a range of no pages.",
        MANUAL,
        _SLOT.create(),
        *writes(_SLOT, 0, 64, 129),
        ClearDirtyLog(1, 0, 130, pages=()),
        *(ClearDirtyLog(1, first, 64, pages=()) for first in (0, 64)),
        ClearDirtyLog(1, 128, 2, pages=()),
        _SLOT.log(),
        clear(_SLOT, 0, 0),
        clear(_SLOT, 64, 0),
        _SLOT.log(),
    ),
    clearing(
        "clear-clean-pages",
        "Bits of pages that are not dirty, or beyond the last page, are ignored.",
        MANUAL,
        _SLOT.create(),
        *writes(_SLOT, 3, 129),
        clear(_SLOT, 128, 2, 128, 130, 191),
        _SLOT.log(),
        clear(_SLOT, 0, 130),
        _SLOT.log(),
        clear(_SLOT, 0, 130),
        *writes(_SLOT, 3, 128),
        _SLOT.log(),
        source="98938aa8edd6; kvm_clear_dirty_log_protect",
    ),
    clearing(
        "clear-after-a-later-write",
        "Pages written between reading the log and clearing it are cleared as well.",
        MANUAL,
        _SLOT.create(),
        *writes(_SLOT, 5),
        _SLOT.log(),
        *writes(_SLOT, 5, 6, value=9),
        clear(_SLOT, 0, 64, 5, 6),
        _SLOT.log(),
    ),
    clearing(
        "clear-one-of-two-slots",
        "Clearing one slot's log leaves that of the other.",
        MANUAL,
        *creates(_SMALL, _OTHER),
        *writes(_SMALL, 1, 3),
        *writes(_OTHER, 1, 3),
        clear(_SMALL, 0, 4, 1),
        _SMALL.log(),
        _OTHER.log(),
        mappings=(A, B),
    ),
    clearing(
        "clear-without-manual-protection",
        "Clearing works without manual protection, too; the remaining pages are reported, and "
        "those of another slot.",
        *creates(_SLOT, replace(_SMALL, slot=2, hva=at("memory", 130))),
        *writes(_SLOT, 0, 64, 129),
        *writes(_SMALL, 2),
        clear(_SLOT, 64, 64, 64),
        GetDirtyLog(2),
        *writes(_SLOT, 65),
        _SLOT.log(),
        _SLOT.log(),
    ),
    clearing(
        "clear-after-string-instructions",
        "Pages that string instructions wrote are cleared one by one, and written again.",
        MANUAL,
        _SLOT.create(),
        Sweep(0x23E_FF0, 0x408, "write", 4, 0x5EED5EED),
        _SLOT.log(),
        clear(_SLOT, 0, 64, 62),
        Sweep(0x23E_FF0, 2, "write", 4, 0x11111111),
        clear(_SLOT, 0, 64, 63),
        _SLOT.log(),
        Sweep(0x23F_FFF, 2, "write", 1, 0x22),
        _SLOT.log(),
    ),
)

_STATES = (
    clearing(
        "clear-then-move",
        "Pages that were cleared before a move stay clean, the others stay dirty.",
        MANUAL,
        _SMALL.create(),
        *writes(_SMALL, 0, 1, 2),
        clear(_SMALL, 0, 4, 1),
        _SMALL.move(0x108),
        _SMALL.log(),
        write(0x109, 7),
        _SMALL.log(),
        clear(_SMALL, 0, 4, 0, 2),
        _SMALL.log(),
        mappings=(A, B),
    ),
    clearing(
        "clear-then-create-anew",
        "A slot that is created again begins clean, and a deleted slot cannot be cleared.",
        MANUAL,
        _SMALL.create(),
        *writes(_SMALL, 0, 1),
        _SMALL.delete(),
        clear(_SMALL, 0, 4),
        _SMALL.create(),
        _SMALL.log(),
        *writes(_SMALL, 2),
        clear(_SMALL, 0, 4, 2),
        _SMALL.log(),
        mappings=(A, B),
    ),
    clearing(
        "clear-with-logging-off-and-on",
        "Without LOG_DIRTY_PAGES there is nothing to clear, and logging begins again empty.",
        MANUAL,
        _SMALL.create(),
        *writes(_SMALL, 0, 1),
        _PLAIN.create(),
        clear(_SMALL, 0, 4),
        *writes(_SMALL, 2, 3),
        _SMALL.create(),
        _SMALL.log(),
        *writes(_SMALL, 1),
        _SMALL.log(),
        mappings=(A, B),
    ),
)

_ERRORS = (
    replace(clearing, needs=())(
        "clear-on-any-kernel",
        "A kernel without a capability refuses to enable it, and has no call to clear a log.",
        MANUAL,
        EnableCap("DIRTY_LOG_RING_ACQ_REL", 3),
        _SMALL.create(),
        *writes(_SMALL, 1, 2),
        clear(_SMALL, 0, 4, 2),
        _SMALL.log(),
        _SMALL.log(),
        source="2a31b9db1535; kvm_vm_ioctl_enable_cap",
        mappings=(A, B),
    ),
    clearing(
        "clear-errors-of-slots",
        "ENOENT without a log, EINVAL for an impossible slot id; a bad first_page is found "
        "before ENOENT.",
        MANUAL,
        clear(_SMALL, 0, 4),
        clear(_SMALL, 1, 4),
        _PLAIN.create(),
        clear(_SMALL, 0, 4),
        clear(_SMALL, 63, 1),
        clear(_SMALL, 0, 5),
        ClearDirtyLog(0xFFFF, 0, 4),
        ClearDirtyLog(0xFFFF_0001, 0, 4),
        source="kvm_clear_dirty_log_protect",
        mappings=(A, B),
    ),
    clearing(
        "clear-errors-of-ranges",
        "A range beyond the slot is EINVAL, even if the sum would wrap; nothing is cleared.",
        MANUAL,
        _SLOT.create(),
        *writes(_SLOT, 0, 64, 129),
        clear(_SLOT, 192, 0),
        clear(_SLOT, 128, 3),
        clear(_SLOT, 0, 131),
        clear(_SLOT, 0, 0xFFFF_FFC0),
        clear(_SLOT, 64, 0xFFFF_FFFF),
        ClearDirtyLog(1, (1 << 64) - 64, 64, pages="all"),
        ClearDirtyLog(1, (1 << 64) - 64, 128, pages="all"),
        _SLOT.log(),
        source="98938aa8edd6; kvm_clear_dirty_log_protect",
    ),
    clearing(
        "clear-from-an-unreadable-bitmap",
        "An unreadable bitmap is EFAULT, and nothing is cleared; with num_pages 0 it is not read.",
        MANUAL,
        _SLOT.create(),
        *writes(_SLOT, 0, 129),
        ClearDirtyLog(1, 0, 130, bitmap="unreadable"),
        ClearDirtyLog(1, 128, 2, bitmap="unreadable"),
        ClearDirtyLog(1, 64, 0, bitmap="unreadable"),
        ClearDirtyLog(1, 1, 130, bitmap="unreadable"),
        _SLOT.log(),
        source="kvm_clear_dirty_log_protect",
    ),
)

_LARGE = replace(_SLOT, pages=0x8008)
_IN_LARGE = (0, 0x3FFF, 0x4000, 0x7FBF, 0x7FC0, 0x7FFF, 0x8000, 0x8007)


def _moved_and_cleared() -> Iterator[AnyOperation]:
    """Clear a range in the middle, and the end, of a slot that was moved once, and twice."""
    marks = (0, 63, 64, 127, 128, 129)
    for gfn in (0x300, 0x180):
        yield from (_SLOT.move(gfn), *writes(replace(_SLOT, gfn=gfn), *marks))
        yield from (clear(_SLOT, 64, 64), _SLOT.log(), clear(_SLOT, 128, 2), _SLOT.log())
        yield from (clear(_SLOT, 0, 130), _SLOT.log())


_MOVED = clearing(
    "clear-the-middle-and-the-end-of-a-slot-that-moved",
    "Pages are counted from the slot's start, wherever it is moved.",
    *(MANUAL, _SLOT.create(), *_moved_and_cleared()),
    mappings=(Mapping("memory", 130),),
)

_OF_LARGE = clearing(
    "clear-more-than-128-mib",
    "A range of more pages than a page of a bitmap has bits is cleared to both ends.",
    MANUAL,
    _LARGE.create(),
    *writes(_LARGE, *_IN_LARGE),
    _LARGE.log(),
    clear(_LARGE, 0, 0x8008),
    _LARGE.log(),
    *writes(_LARGE, *_IN_LARGE),
    clear(_LARGE, 0x7FC0, 0x48),
    _LARGE.log(),
    source="kvm_clear_dirty_log_protect; kvm_second_dirty_bitmap",
    mappings=(Mapping("memory", _LARGE.pages),),
)


def _huge(kind: str, options: EnableCap) -> Scenario:
    """Split huge pages by clearing parts of them."""
    slot = Slot(1, 0x200, at("memory"), 1024)
    logged = replace(slot, flags=LOG_DIRTY_PAGES)
    marks = (0, 1, 63, 64, 255, 256, 447, 448, 511, 512, 513, 1023)
    how = "" if options is MANUAL else "-initially-set"
    area = clearing if options is MANUAL else clearing_initially_set
    return area(
        f"clear-within-huge-pages-{kind}{how}",
        "Parts of a huge page are cleared and written again, each 4 KiB page by itself.",
        options,
        slot.create(),
        *writes(slot, *marks),
        logged.create(),
        logged.log(),
        clear(slot, 0, 1024),
        *writes(slot, *marks),
        logged.log(),
        clear(slot, 64, 64),
        clear(slot, 448, 64, 448, 511),
        clear(slot, 512, 512, 512),
        logged.log(),
        *writes(slot, 64, 511),
        logged.log(),
        *writes(slot, 448, 512),
        logged.log(),
        source="7cd1bf039eeb",
        mappings=(_HUGE_MEMORY[kind],),
        needs=_HUGE_NEEDS[kind],
    )


_OFFSET = 31
_WORD = 960
_BORDER = 1024 - _OFFSET
_SPREAD = Slot(1, 0x200 + _OFFSET, at("memory", _OFFSET), 1536 - _OFFSET)
"""A slot in whose bitmap no word begins at a huge page. Only the first huge page that lies entirely
in the slot, and the next one, can be mapped as huge; their border lies within a word."""


def _over_border(
    name: str, why: str, kind: str, options: EnableCap, *cleared: tuple[int, ...]
) -> Scenario:
    """Clear pages in the word that spans two huge pages, and write to them."""
    logged = replace(_SPREAD, flags=LOG_DIRTY_PAGES)

    def rounds() -> Iterator[AnyOperation]:
        for number, pages in enumerate(cleared):
            # Without the log, each huge page is mapped as huge again.
            yield _SPREAD.create()
            yield from writes(_SPREAD, _WORD, _BORDER, value=number)
            yield logged.create()
            yield clear(_SPREAD, _WORD, 64, *pages)
            yield from writes(_SPREAD, *pages, value=number + 64)
            yield _SPREAD.log()

    area = clearing if options is MANUAL else clearing_initially_set
    return area(
        f"{name}-{kind}{'' if options is MANUAL else '-initially-set'}",
        why,
        options,
        *rounds(),
        source="kvm_arch_mmu_enable_log_dirty_pt_masked",
        mappings=(msgspec.structs.replace(_HUGE_MEMORY[kind], pages=1536),),
        needs=_HUGE_NEEDS[kind],
    )


def _across(kind: str, options: EnableCap) -> Scenario:
    return _over_border(
        "clear-across-huge-pages",
        "A word of the bitmap may span two huge pages, and pages of both may be cleared.",
        kind,
        options,
        (_BORDER,),
        (_BORDER - 1, _BORDER + 1),
        (_WORD, _WORD + 63),
    )


def _into(kind: str, options: EnableCap) -> Scenario:
    return _over_border(
        "clear-into-a-huge-page",
        "A range to clear may end with the first page of a huge page.",
        kind,
        options,
        (_BORDER - 1, _BORDER),
        (_WORD, _BORDER),
    )


SCENARIOS = (
    *map(_grid, _SIZES),
    *_CLEARS,
    *_STATES,
    *_ERRORS,
    _OF_LARGE,
    _MOVED,
    *(
        make(kind, options)
        for make in (_huge, _across, _into)
        for kind in _HUGE_MEMORY
        for options in (MANUAL, INITIALLY_SET)
    ),
)
"""All scenarios about KVM_CLEAR_DIRTY_LOG."""
