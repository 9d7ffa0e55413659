"""KVM_GET_DIRTY_LOG: exactly the pages that the guest wrote since the last call."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from vmm.catalogue._area import Area
from vmm.catalogue._build import API_DIRTY, HUGE, A, B, Slot, at, creates, read, write
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    AnyOperation,
    ChangeHostMemory,
    GetDirtyLog,
    HostWrite,
    Mapping,
    Place,
    Scenario,
    Sweep,
    Touch,
)

_LOGGED = Slot(1, 0x100, at("a"), 4, LOG_DIRTY_PAGES)
_PLAIN = replace(_LOGGED, flags=0)
_OTHER = Slot(2, 0x104, at("b"), 4, LOG_DIRTY_PAGES)
_START = _LOGGED.gfn * PAGE_SIZE_BYTES


_dirty = Area(tags=("dirty",), source=API_DIRTY, survey="read")
"""The surveys only read, so that every dirty page is one that the scenario names."""


def _switched_on(slot: Slot) -> Iterator[AnyOperation]:
    """Write to every page without a log, then with one, and again after it was read."""
    logged = replace(slot, flags=LOG_DIRTY_PAGES)
    yield slot.create()
    for call in (None, logged.create(), slot.create(), logged.create(), logged.log()):
        if call is not None:
            yield call
        yield from (write(slot.gfn + page, page + 1) for page in range(slot.pages))
    yield logged.log()
    yield logged.delete()


def _beside_the_log() -> Iterator[AnyOperation]:
    twin = Slot(3, 0x200, _LOGGED.hva, _LOGGED.pages, LOG_DIRTY_PAGES)
    below, above = Slot(4, 0xFC, at("b"), 4), Slot(5, 0x104, at("b", 4), 4)
    for other in (twin, below, above):
        there, away = replace(other, flags=LOG_DIRTY_PAGES), other.gfn + 0x100
        for call in (other.create(), other.move(away), other.create(), there.create()):
            yield from (call, _LOGGED.log())
        yield from (write(_LOGGED.gfn + 1, other.slot), write(other.gfn, other.slot))
        yield from (there.delete(), _LOGGED.log())


_WRITTEN = {
    1: (0,),
    63: (0, 62),
    64: (0, 31, 32, 63),
    65: (63, 64),
    127: (63, 64, 126),
    128: (0, 63, 64, 127),
    130: (7, 63, 64, 128, 129),
    512: (255, 256, 511),
    513: (0, 511, 512),
}
"""The pages that are written first in slots of these sizes: mostly those at the ends of words."""

_LARGE = Slot(1, 0x1_0000, at("large"), 0x8008, LOG_DIRTY_PAGES)
"""More than 128 MiB: its bitmap takes more than a page, as does each array that KVM keeps of it."""

_SIZED = tuple(
    Slot(pages, 0x100 + sum(size for size in _WRITTEN if size < pages), at("big"), pages)
    for pages in _WRITTEN
)

_SIZES = Scenario(
    name="dirty-log-of-every-size",
    why="The bitmap has a bit for each page, whether it ends within a word or with one.",
    source="76d58e0f07ec, 98938aa8edd6; kvm_dirty_bitmap_bytes",
    tags=("dirty", "size"),
    mappings=(Mapping("big", 513),),
    survey="none",
    operations=(
        *creates(*(replace(slot, flags=LOG_DIRTY_PAGES) for slot in _SIZED)),
        *(write(slot.gfn + page, page) for slot in _SIZED for page in _WRITTEN[slot.pages]),
        *(slot.log() for slot in _SIZED),
        *(write(slot.gfn + page, page) for slot in _SIZED for page in range(slot.pages)),
        *(slot.log() for slot in _SIZED),
        *(slot.log() for slot in _SIZED),
    ),
)


def _tracked_anew(*written: tuple[int, ...]) -> Iterator[AnyOperation]:
    """Switch a log off and on again, and write to these pages meanwhile, and after."""
    every = range(_LOGGED.pages)
    for pages in written:
        yield from (write(_LOGGED.gfn + page, 0x10 + page) for page in every)
        yield from (_LOGGED.log(), _PLAIN.create())
        yield from (write(_LOGGED.gfn + page, 0x20 + page) for page in pages)
        yield _LOGGED.create()
        yield from (write(_LOGGED.gfn + page, 0x30 + page) for page in pages)
        yield from (_LOGGED.log(), _LOGGED.log())


def _at_page_ends(*widths: Literal[1, 2, 4]) -> Iterator[AnyOperation]:
    """Write the last bytes of each page, then the first ones, and read the log after each."""
    for width in widths:
        for page in range(1, _LOGGED.pages):
            border = _START + page * PAGE_SIZE_BYTES
            yield from (Touch(border - width, "write", width, 0xA1B2C3D4), _LOGGED.log())
            yield from (Touch(border, "write", width, 0xA1B2C3D4), _LOGGED.log())


def _over_the_ends(*widths: Literal[2, 4]) -> Iterator[AnyOperation]:
    """Write over both ends of the slot, with every number of bytes inside."""
    for width in widths:
        for inside in range(1, width):
            end = _START + _LOGGED.pages * PAGE_SIZE_BYTES
            yield from (Touch(end - inside, "write", width, 0xA1B2C3D4), _LOGGED.log())
            before = _START - (width - inside)
            yield from (Touch(before, "write", width, 0xA1B2C3D4), _LOGGED.log())


_IN_LARGE = (0, 1, 511, 512, 0x3FFF, 0x4000, 0x7FFF, 0x8000, 0x8007)

_WRITES = (
    _dirty(
        "dirty-log-read-twice",
        "Reading the log dirties nothing, and a page is reported again only if written again.",
        _LOGGED.create(),
        read(0x101),
        _LOGGED.log(),
        write(0x101, 7),
        _LOGGED.log(),
        _LOGGED.log(),
        # Writing the value that is already there is a write, too.
        write(0x101, 7),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-one-byte",
        "One byte is enough, the first or the last of a page.",
        _LOGGED.create(),
        Touch(_START, "write", 1, 0x5A),
        _LOGGED.log(),
        Touch(_START + 3 * PAGE_SIZE_BYTES - 1, "write", 1, 0xA5),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-over-a-page-border",
        "A write that straddles two pages makes both dirty.",
        _LOGGED.create(),
        Touch(_START + PAGE_SIZE_BYTES - 1, "write", 2, 0x1122),
        _LOGGED.log(),
        Touch(_START + 3 * PAGE_SIZE_BYTES - 3, "write", 4, 0x33445566),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-over-a-slot-border",
        "A write that straddles two slots makes a page of each dirty.",
        *creates(_LOGGED, _OTHER),
        Touch(_START + 4 * PAGE_SIZE_BYTES - 2, "write", 4, 0x778899AA),
        _LOGGED.log(),
        _OTHER.log(),
    ),
    _dirty(
        "dirty-log-over-the-end",
        "If a write crosses the end of a slot, the part inside makes its page dirty.",
        _LOGGED.create(),
        Touch(_START + 4 * PAGE_SIZE_BYTES - 1, "write", 4, 0x778899AA),
        _LOGGED.log(),
        Touch(_START - 1, "write", 4, 0x778899AA),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-of-every-width-at-page-ends",
        "A write to the last bytes of a page makes that page dirty, and one to the first bytes "
        "of the next page the next one.",
        _LOGGED.create(),
        *_at_page_ends(1, 2, 4),
        source="api.rst 4.8; kvm_write_guest_page",
    ),
    _dirty(
        "dirty-log-of-emulated-writes",
        "Writes that cross the end of a slot are emulated; the part inside is logged, too.",
        _LOGGED.create(),
        *_over_the_ends(2, 4),
        source="emulator_write_phys",
    ),
    _dirty(
        "dirty-log-of-sweeps-over-the-ends",
        "A string instruction that begins before a slot, or ends after it, is logged inside.",
        _LOGGED.create(),
        Sweep(_START - 8, 6, "write", 4, 0x5EED5EED),
        _LOGGED.log(),
        Sweep(_START + 4 * PAGE_SIZE_BYTES - 6, 6, "write", 2, 0x5EED),
        _LOGGED.log(),
        Sweep(_START + 2 * PAGE_SIZE_BYTES - 3, 5, "write", 1, 0x5E),
        _LOGGED.log(),
        source="emulator_write_phys",
    ),
    _dirty(
        "dirty-log-of-a-sweep",
        "A string instruction makes each page dirty that it writes, and none that it reads.",
        _LOGGED.create(),
        Sweep(_START + PAGE_SIZE_BYTES - 16, 1024 + 8, "write", 4, 0x5EED5EED),
        Sweep(_START, 64),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-without-host-writes",
        "What the host writes through its mapping is never reported.",
        _LOGGED.create(),
        HostWrite(Place("a", 2 * PAGE_SIZE_BYTES + 0x200), 0xDEADBEEF),
        read(0x102, 0x200),
        _LOGGED.log(),
        write(0x103, 5),
        HostWrite(Place("a", 0x200), 0xDEADBEEF),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-on-transparent-huge-pages",
        "Logging is by 4 KiB pages, even if the host's page is huge.",
        Slot(1, 0x200, at("huge"), 520, LOG_DIRTY_PAGES).create(),
        *(write(0x200 + page, page) for page in (0, 255, 511, 512, 519)),
        GetDirtyLog(1),
        write(0x200 + 511, 3),
        GetDirtyLog(1),
        source="7cd1bf039eeb",
        mappings=(HUGE,),
    ),
    _dirty(
        "dirty-log-of-more-than-128-mib",
        "A bitmap of more than a page is complete, at both ends and where its pages meet.",
        *creates(_LARGE, _OTHER),
        *(write(_LARGE.gfn + page, page) for page in _IN_LARGE),
        _LARGE.log(),
        *(write(_LARGE.gfn + page, page + 1) for page in _IN_LARGE[::2]),
        _LARGE.log(),
        _OTHER.log(),
        _LARGE.log(),
        survey="none",
        source="kvm_alloc_dirty_bitmap; kvm_second_dirty_bitmap",
        mappings=(Mapping("large", _LARGE.pages), B),
    ),
    _dirty(
        "dirty-log-switched-on-over-huge-pages",
        "A huge page that was mapped writable before logging began is split for it.",
        Slot(1, 0x200, at("huge"), pages=520).create(),
        write(0x200, 1),
        write(0x2FF, 2),
        Slot(1, 0x200, at("huge"), 520, LOG_DIRTY_PAGES).create(),
        write(0x2FE, 3),
        write(0x407, 4),
        GetDirtyLog(1),
        source="7cd1bf039eeb",
        mappings=(HUGE,),
    ),
)  # fmt: skip

_SLOTS = (
    _dirty(
        "dirty-logs-are-separate",
        "Each slot has its own log: another one may begin and be read, and host memory may be "
        "mapped anew, and it is still there.",
        _LOGGED.create(),
        write(0x101, 1),
        _OTHER.create(),
        write(0x106, 2),
        _LOGGED.log(),
        _OTHER.log(),
        write(0x102, 3),
        write(0x107, 4),
        ChangeHostMemory(at("b"), how="map_fresh"),
        _LOGGED.log(),
        _OTHER.log(),
    ),
    _dirty(
        "dirty-logs-of-one-page",
        "If two slots share a host page, only the log of the slot that the guest wrote to has it.",
        *creates(_LOGGED, Slot(2, 0x110, at("a"), 4, LOG_DIRTY_PAGES)),
        write(0x102, 1),
        _LOGGED.log(),
        GetDirtyLog(2),
        write(0x111, 2),
        _LOGGED.log(),
        GetDirtyLog(2),
        mappings=(A,),
    ),
    _dirty(
        "dirty-log-while-another-slot-changes",
        "Changing, moving and deleting a slot loses no dirty page of another one.",
        *creates(_LOGGED, replace(_OTHER, flags=0)),
        write(0x100, 1),
        _OTHER.create(),
        write(0x101, 2),
        _OTHER.change(0),
        write(0x102, 3),
        replace(_OTHER, flags=0).move(0x108),
        write(0x103, 4),
        _OTHER.delete(),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-beside-slots-that-come-and-go",
        "What happens to slots on the same memory, or to those just below and above, is not in a "
        "slot's log, and takes nothing from it.",
        _LOGGED.create(),
        *_beside_the_log(),
    ),
)

_CHANGES = (
    _dirty(
        "dirty-log-from-the-middle-on",
        "What was written before logging began is not reported.",
        _PLAIN.create(),
        write(0x100, 1),
        _LOGGED.create(),
        write(0x102, 2),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-off-and-on",
        "A log that was switched off and on begins empty; the memory's content is kept.",
        _LOGGED.create(),
        write(0x100, 1),
        _PLAIN.create(),
        write(0x101, 2),
        _LOGGED.create(),
        _LOGGED.log(),
        write(0x102, 3),
        _LOGGED.log(),
        read(0x100),
        read(0x101),
    ),
    _dirty(
        "dirty-log-switched-on-again-over-some-written-pages",
        "A log that begins anew tracks every page, whichever were tracked last and whichever have "
        "been written meanwhile.",
        _LOGGED.create(),
        *_tracked_anew((2,), (0, 3), (1, 2)),
        survey="none",
        source="kvm_mmu_slot_remove_write_access, wrprot_gfn_range",
    ),
    _dirty(
        "dirty-log-switched-on-over-written-pages",
        "Pages that were written before the log begins are tracked, each of them, each time.",
        *(
            operation
            for pages in (1, 2, 3, 65)
            for operation in _switched_on(replace(_PLAIN, hva=at("written"), pages=pages))
        ),
        mappings=(Mapping("written", 65),),
    ),
    _dirty(
        "dirty-log-after-a-nop",
        "Setting the same values again loses no dirty page.",
        _LOGGED.create(),
        write(0x102, 1),
        _LOGGED.create(),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-after-a-refusal",
        "A refused call loses no dirty page, and reports none that was not written.",
        *creates(_LOGGED, _OTHER),
        write(0x102, 1),
        _LOGGED.move(0x103),
        replace(_LOGGED, pages=3).create(),
        Slot(_LOGGED.slot - 1, 0, 0).delete(),
        _LOGGED.log(),
        write(0x103, 2),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-carried-by-a-move",
        "A slot that moves takes its dirty bitmap along.",
        _LOGGED.create(),
        write(0x101, 1),
        _LOGGED.move(0x106),
        write(0x109, 2),
        _LOGGED.log(),
        source="kvm_prepare_memory_region",
    ),
    _dirty(
        "dirty-log-begun-by-a-move",
        "A move that sets LOG_DIRTY_PAGES begins with a clean log.",
        _PLAIN.create(),
        write(0x101, 1),
        _PLAIN.move(0x106, LOG_DIRTY_PAGES),
        _LOGGED.log(),
        write(0x108, 2),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-ended-by-a-move",
        "A move that clears LOG_DIRTY_PAGES ends the log: ENOENT.",
        _LOGGED.create(),
        write(0x101, 1),
        _LOGGED.move(0x106, 0),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-of-a-slot-made-anew",
        "A slot that is deleted and created again begins with an empty log.",
        _LOGGED.create(),
        write(0x101, 1),
        _LOGGED.delete(),
        _LOGGED.create(),
        _LOGGED.log(),
        write(0x103, 2),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-ends-with-its-slot",
        "A slot without LOG_DIRTY_PAGES has no log, even if its id, or its place, had one before.",
        _LOGGED.create(),
        write(0x101, 1),
        _LOGGED.delete(),
        _PLAIN.create(),
        write(0x102, 2),
        _PLAIN.log(),
        _PLAIN.delete(),
        replace(_PLAIN, slot=2).create(),
        write(0x103, 3),
        replace(_PLAIN, slot=2).log(),
        _PLAIN.log(),
    ),
)

_ERRORS = (
    _dirty(
        "dirty-log-of-no-logging-slot",
        "KVM_GET_DIRTY_LOG is ENOENT before creation, without LOG_DIRTY_PAGES, after deletion, "
        "and for a slot that is created again.",
        _LOGGED.log(),
        _PLAIN.create(),
        _LOGGED.log(),
        _LOGGED.create(),
        _OTHER.log(),
        _PLAIN.create(),
        _LOGGED.log(),
        _LOGGED.delete(),
        _LOGGED.log(),
        # Logging belongs to the deleted slot, not to its id.
        _LOGGED.create(),
        _LOGGED.delete(),
        _PLAIN.create(),
        _LOGGED.log(),
    ),
    _dirty(
        "dirty-log-to-an-unwritable-bitmap",
        "EFAULT if the bitmap cannot be written; logging continues.",
        _LOGGED.create(),
        write(0x101, 1),
        GetDirtyLog(1, bitmap="unwritable"),
        write(0x103, 2),
        _LOGGED.log(),
        _LOGGED.log(),
        source="kvm_get_dirty_log_protect",
    ),
    _dirty(
        "dirty-log-errors-in-order",
        "An absent slot is ENOENT, whatever the bitmap, and an impossible slot id is EINVAL.",
        _PLAIN.create(),
        GetDirtyLog(1, bitmap="unwritable"),
        GetDirtyLog(2, bitmap="unwritable"),
        GetDirtyLog(0xFFFF, bitmap="unwritable"),
        source="kvm_get_dirty_log_protect",
    ),
)

SCENARIOS = (_SIZES, *_WRITES, *_SLOTS, *_CHANGES, *_ERRORS)
"""All scenarios about the dirty log."""
