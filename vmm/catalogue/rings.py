"""The dirty ring: each vCPU lists the pages that it wrote, until the host resets them."""

from collections.abc import Iterator
from dataclasses import replace

from vmm.catalogue._build import HUGE, Slot, at, creates, read, write
from vmm.catalogue._dirty import HARVEST, RESET, ring_scenario, writes
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    RING_ENTRY_BYTES,
    AnyOperation,
    EnableCap,
    HarvestDirtyRing,
    HostWrite,
    Inspect,
    Mapping,
    Place,
    Scenario,
    Sweep,
    Touch,
)

_SLOT = Slot(1, 0x100, at("a"), 4, LOG_DIRTY_PAGES)
_FIRST, _SECOND = HarvestDirtyRing(0), HarvestDirtyRing(1)
_PLAIN = replace(_SLOT, flags=0)
_OTHER = Slot(2, 0x104, at("b"), 4, LOG_DIRTY_PAGES)
_START = _SLOT.gfn * PAGE_SIZE_BYTES

_LONG = Slot(1, 0x1000, at("long"), 1500, LOG_DIRTY_PAGES)
_LARGE = Slot(1, 0x1_0000, at("large"), 0x1_0010, LOG_DIRTY_PAGES)
_IN_LARGE = (0x1_000F, 0, 0xFFFF, 0x1_0000, 7, 0x1_0007)
_WHOLE = 512
"""As many pages as fill whole pages of what KVM keeps of each."""
_WIDE = Slot(1, 0x100, at("wide"), 200, LOG_DIRTY_PAGES)
_AS_WIDE = Slot(2, 0x200, at("as-wide"), 200, LOG_DIRTY_PAGES)
_RUNS = (
    *(
        tuple((_WIDE, page) for page in pages)
        for pages in (
            (10, 70, 5),
            (3, 67),
            (67, 3),
            (3, 66),
            (100, 37, 36),
            (100, 163, 164, 99),
            (0, 63, 64, 127, 128, 191, 192),
            (192, 191, 128, 127, 64, 63, 0),
            (64, 127, 63, 0),
        )
    ),
    ((_WIDE, 3), (_AS_WIDE, 5)),
    ((_AS_WIDE, 5), (_WIDE, 3), (_AS_WIDE, 6), (_WIDE, 2)),
    ((_WIDE, 3), (_WIDE, 4), (_AS_WIDE, 4), (_AS_WIDE, 3), (_WIDE, 60)),
)
"""Orders of writing pages: a reset gathers entries for nearby pages of a slot."""

_RESERVE = 64
_PIECE = 48
"""Writes in one KVM_RUN when the ring may get full: fewer than fit above its soft limit."""


def _on_huge_pages(enable: EnableCap) -> Scenario:
    slot = Slot(1, 0x200, at("huge"), 1024)
    logged = replace(slot, flags=LOG_DIRTY_PAGES)
    pages = (1023, 0, 512, 511, 7)

    def written(value: int) -> tuple[AnyOperation, ...]:
        return (*writes(slot, *pages, value=value), HARVEST, RESET)

    return ring_scenario(
        "ring-on-huge-pages",
        "Even if memory is huge pages, the ring names exactly the small pages that were written, "
        "whether the slot was logged from the start or later.",
        enable,
        logged.create(),
        *written(1),
        *written(2),
        slot.create(),
        *(write(slot.gfn + page, 3 + page) for page in (1, 600)),
        HARVEST,
        logged.create(),
        *written(4),
        *writes(slot, 8, 513),
        HARVEST,
        RESET,
        source="kvm_mmu_hugepage_adjust; kvm_dirty_ring_push",
        mappings=(HUGE,),
    )


def _of_a_large_slot(enable: EnableCap) -> Scenario:
    return ring_scenario(
        "ring-of-more-than-256-mib",
        "An entry says which page of 65,536 and more it is, and a reset finds it again.",
        enable,
        _LARGE.create(),
        *(
            op
            for value in (1, 2)
            for op in (*writes(_LARGE, *_IN_LARGE, value=value), HARVEST, RESET)
        ),
        source="kvm_dirty_ring_push",
        mappings=(Mapping("large", _LARGE.pages),),
    )


def _named(enable: EnableCap) -> tuple[Scenario, ...]:
    """Return the scenarios about which pages a ring lists."""
    return (
        ring_scenario(
            "ring-names-what-was-written",
            "The ring holds the pages that the vCPU wrote, but not those that it only read.",
            enable,
            _SLOT.create(),
            HARVEST,
            *writes(_SLOT, 3, 1),
            HARVEST,
            HARVEST,
            RESET,
            read(0x100),
            read(0x102),
            HARVEST,
            RESET,
        ),
        ring_scenario(
            "ring-without-host-writes",
            "What the host writes through its mapping is never reported.",
            enable,
            _SLOT.create(),
            HostWrite(Place("a", 2 * PAGE_SIZE_BYTES + 0x200), 0xDEADBEEF),
            HARVEST,
            *writes(_SLOT, 3),
            HARVEST,
            RESET,
        ),
        _on_huge_pages(enable),
        _of_a_large_slot(enable),
    )


def _instructions(enable: EnableCap) -> tuple[Scenario, ...]:
    return (
        ring_scenario(
            "ring-of-writes-of-every-width",
            "One byte is enough, and a write across a page's or a slot's end makes two dirty.",
            enable,
            *creates(_SLOT, _OTHER),
            Touch(_START + PAGE_SIZE_BYTES - 1, "write", 1, 0x5A),
            HARVEST,
            Touch(_START + 3 * PAGE_SIZE_BYTES - 2, "write", 2, 0x5A5A),
            HARVEST,
            RESET,
            Touch(_START + 2 * PAGE_SIZE_BYTES - 1, "write", 2, 0x1122),
            HARVEST,
            RESET,
            Touch(_START + 4 * PAGE_SIZE_BYTES - 3, "write", 4, 0x33445566),
            HARVEST,
            RESET,
            Touch(_START + 8 * PAGE_SIZE_BYTES - 1, "write", 4, 0x33445566),
            Touch(_START - 1, "write", 4, 0x33445566),
            HARVEST,
            RESET,
        ),
        ring_scenario(
            "ring-of-string-instructions",
            "A string instruction reports each page that it writes, and none that it reads.",
            enable,
            *creates(_SLOT, _OTHER),
            Sweep(_START + 2 * PAGE_SIZE_BYTES - 32, 16, "write", 4, 0x5EED5EED),
            Sweep(_START, 64),
            HARVEST,
            RESET,
            Sweep(_START + 4 * PAGE_SIZE_BYTES - 8, 16, "write", 1, 0x77),
            HARVEST,
            RESET,
        ),
    )


def _reset_of_runs(enable: EnableCap) -> Scenario:
    return ring_scenario(
        "ring-reset-of-runs",
        "A reset tracks pages again that are 64 apart, in descending order, and alternately "
        "in two slots.",
        enable,
        *creates(_WIDE, _AS_WIDE),
        *(
            op
            for order in _RUNS
            for _ in range(2)
            for op in (
                *(each for slot, page in order for each in writes(slot, page)),
                HARVEST,
                RESET,
            )
        ),
        source="kvm_dirty_ring_reset",
        mappings=(Mapping("wide", _WIDE.pages), Mapping("as-wide", _AS_WIDE.pages)),
    )


def _resets(enable: EnableCap) -> tuple[Scenario, ...]:
    return (
        ring_scenario(
            "ring-reset-tracks-anew",
            "A page that was reset is reported again when it is written again, and only then.",
            enable,
            _SLOT.create(),
            *writes(_SLOT, 0, 2),
            HARVEST,
            RESET,
            HARVEST,
            *writes(_SLOT, 2),
            HARVEST,
            RESET,
            *writes(_SLOT, 0, 2),
            HARVEST,
            RESET,
        ),
        ring_scenario(
            "ring-reset-in-any-order",
            "Pages that were written in descending or mixed order are tracked again like others.",
            enable,
            _SLOT.create(),
            *(
                op
                for order in ((3, 2, 1, 0), (1, 3, 0, 2))
                for _ in range(2)
                for op in (*writes(_SLOT, *order), HARVEST, RESET)
            ),
            source="kvm_dirty_ring_reset",
        ),
        _reset_of_runs(enable),
    )


def _without_reset(enable: EnableCap) -> tuple[Scenario, ...]:
    """Return the scenarios with entries that no reset has freed yet."""
    return (
        ring_scenario(
            "ring-not-reset-yet",
            "Between harvest and reset, writes to other pages are reported; writes to the same "
            "pages may be.",
            enable,
            _SLOT.create(),
            *writes(_SLOT, 0),
            HARVEST,
            *writes(_SLOT, 0, 1),
            HARVEST,
            RESET,
            *writes(_SLOT, 0, 1),
            HARVEST,
            RESET,
        ),
        ring_scenario(
            "ring-reset-of-nothing",
            "A reset frees what was harvested, and nothing else: other entries stay.",
            enable,
            RESET,
            _SLOT.create(),
            *writes(_SLOT, 1, 2),
            RESET,
            HARVEST,
            RESET,
            RESET,
        ),
    )


def _logged_slots(enable: EnableCap) -> tuple[Scenario, ...]:
    return (
        ring_scenario(
            "ring-beside-other-slots",
            "Slots that are not logged are not in the ring; logged ones are, under their own ids.",
            enable,
            *creates(_SLOT, replace(_OTHER, flags=0), Slot(3, 0x110, at("a", 4), 4, READONLY)),
            Slot(0x1FF, 0x120, at("b", 4), 2, LOG_DIRTY_PAGES).create(),
            *writes(_OTHER, 0, 1),
            write(0x110, 1),
            write(0x121, 2),
            *writes(_SLOT, 2),
            write(0x120, 3, vcpu=1),
            HARVEST,
            HarvestDirtyRing(vcpu=1),
            RESET,
            vcpus=2,
        ),
        ring_scenario(
            "ring-of-one-host-page",
            "If two slots share a host page, the ring names the slot that the guest wrote to.",
            enable,
            *creates(_SLOT, replace(_OTHER, hva=at("a"))),
            *writes(_SLOT, 2),
            HARVEST,
            RESET,
            *writes(_OTHER, 2),
            HARVEST,
            RESET,
        ),
        ring_scenario(
            "ring-with-logging-off-and-on",
            "Without LOG_DIRTY_PAGES nothing is reported; with it everything is, also pages that "
            "were mapped before.",
            enable,
            _PLAIN.create(),
            *writes(_SLOT, 0, 1),
            _SLOT.create(),
            *writes(_SLOT, 1),
            HARVEST,
            RESET,
            _PLAIN.create(),
            *writes(_SLOT, 0, 1, 2),
            HARVEST,
            _SLOT.create(),
            *writes(_SLOT, 2),
            HARVEST,
            RESET,
        ),
    )


def _changed_slots(enable: EnableCap) -> tuple[Scenario, ...]:
    return (
        ring_scenario(
            "ring-while-slots-change",
            "Entries stay until they are harvested, whatever happens to their slot meanwhile.",
            enable,
            *creates(_SLOT, _OTHER),
            *writes(_SLOT, 1),
            _SLOT.move(0x108),
            write(0x10A, 7),
            *writes(_OTHER, 3),
            _OTHER.delete(),
            HARVEST,
            RESET,
            write(0x109, 8),
            HARVEST,
            RESET,
        ),
        ring_scenario(
            "ring-of-a-slot-made-anew",
            "A slot that is created again with the same id is tracked from its first write on.",
            enable,
            _SLOT.create(),
            *writes(_SLOT, 1),
            HARVEST,
            _SLOT.delete(),
            _SLOT.create(),
            *writes(_SLOT, 1),
            HARVEST,
            RESET,
            *writes(_SLOT, 1),
            HARVEST,
            RESET,
        ),
    )


def _shorter_slots(enable: EnableCap) -> tuple[Scenario, ...]:
    return (
        ring_scenario(
            "ring-entries-of-a-shorter-slot",
            "Resetting entries beyond the end of a new slot, or of no slot at all, is harmless.",
            enable,
            _SLOT.create(),
            *writes(_SLOT, 0, 3),
            HARVEST,
            _SLOT.delete(),
            replace(_SLOT, pages=2).create(),
            RESET,
            *writes(_SLOT, 0),
            HARVEST,
            _SLOT.delete(),
            RESET,
            source="kvm_reset_dirty_gfn",
        ),
        ring_scenario(
            "ring-entries-of-a-much-shorter-slot",
            "Resetting entries far beyond the end of a new slot is harmless.",
            enable,
            _LONG.create(),
            *writes(_LONG, 0, 600, 700, 1400),
            HARVEST,
            _LONG.delete(),
            replace(_LONG, pages=1).create(),
            RESET,
            *writes(_LONG, 0),
            HARVEST,
            RESET,
            _LONG.delete(),
            replace(_LONG, pages=_WHOLE + 1).create(),
            *writes(_LONG, _WHOLE - 1, _WHOLE),
            HARVEST,
            _LONG.delete(),
            replace(_LONG, pages=_WHOLE).create(),
            RESET,
            source="kvm_reset_dirty_gfn",
            mappings=(Mapping("long", _LONG.pages),),
        ),
    )


def _vcpus(enable: EnableCap) -> tuple[Scenario, ...]:
    return (
        ring_scenario(
            "ring-of-each-vcpu",
            "Each vCPU has its own ring, with what it wrote itself.",
            enable,
            *creates(_SLOT, _OTHER),
            *writes(_SLOT, 0, 1),
            *writes(_SLOT, 2, vcpu=1),
            *writes(_OTHER, 3, vcpu=1),
            _SECOND,
            _FIRST,
            RESET,
            *writes(_SLOT, 2),
            *writes(_SLOT, 0, vcpu=1),
            _FIRST,
            _SECOND,
            RESET,
            vcpus=2,
        ),
        ring_scenario(
            "ring-harvested-of-one-vcpu",
            "A reset frees what was harvested from one vCPU and leaves entries in another's ring.",
            enable,
            _SLOT.create(),
            *writes(_SLOT, 0),
            *writes(_SLOT, 1, vcpu=1),
            *writes(_SLOT, 2, vcpu=2),
            _SECOND,
            RESET,
            *writes(_SLOT, 1, vcpu=2),
            _FIRST,
            HarvestDirtyRing(2),
            _SECOND,
            RESET,
            vcpus=3,
        ),
    )


def _written_by_two(enable: EnableCap) -> tuple[Scenario, ...]:
    return (
        ring_scenario(
            "ring-of-one-page-written-by-two",
            "A page that two vCPUs wrote is in at least one ring, and again after a reset.",
            enable,
            _SLOT.create(),
            *writes(_SLOT, 1),
            *writes(_SLOT, 1, vcpu=1),
            _FIRST,
            _SECOND,
            RESET,
            *writes(_SLOT, 1, vcpu=1),
            _SECOND,
            _FIRST,
            RESET,
            vcpus=2,
        ),
    )


def _in_pieces(slot: Slot, pages: range) -> tuple[AnyOperation, ...]:
    """Write pages in several KVM_RUNs: an operation in between ends each."""
    operations: list[AnyOperation] = []
    for page in pages:
        operations.append(write(slot.gfn + page, page + 1))
        if (page - pages.start) % _PIECE == _PIECE - 1:
            operations.append(Inspect())
    return tuple(operations)


def _larger_than_the_ring(enable: EnableCap) -> Slot:
    """Return a slot whose pages overfill a ring, in a mapping of its own."""
    entries = enable.argument // RING_ENTRY_BYTES
    return Slot(1, 0x1000, at("memory"), entries + entries // 4, LOG_DIRTY_PAGES)


def _rounds(slot: Slot) -> Iterator[AnyOperation]:
    """Write a slot's pages, few at a time, each time with a harvest and a reset."""
    for start in range(0, slot.pages, _PIECE):
        yield from _in_pieces(slot, range(start, min(start + _PIECE, slot.pages)))
        yield from (HARVEST, RESET)


def _round_trips(enable: EnableCap) -> tuple[Scenario, ...]:
    slot = _larger_than_the_ring(enable)
    rounds = tuple(_rounds(slot))
    return (
        ring_scenario(
            "ring-goes-round",
            "The ring wraps around: no entry is lost at its end.",
            enable,
            slot.create(),
            *rounds,
            *rounds,
            mappings=(Mapping("memory", slot.pages),),
        ),
        ring_scenario(
            "ring-full",
            "A vCPU stops when its ring is nearly full, and continues when there is room again.",
            enable,
            slot.create(),
            *_in_pieces(slot, range(slot.pages)),
            HARVEST,
            RESET,
            *_in_pieces(slot, range(slot.pages)),
            HARVEST,
            RESET,
            mappings=(Mapping("memory", slot.pages),),
        ),
    )


def _nearly_full(enable: EnableCap) -> tuple[Scenario, ...]:
    slot = _larger_than_the_ring(enable)
    entries = enable.argument // RING_ENTRY_BYTES
    return (
        ring_scenario(
            "ring-keeps-a-reserve",
            "A vCPU stops while 64 entries are still free: they are for what a single exit may "
            "write.",
            enable,
            slot.create(),
            *_in_pieces(slot, range(entries - _RESERVE)),
            Inspect(),
            *writes(slot, entries - _RESERVE),
            HARVEST,
            RESET,
            *writes(slot, 0),
            HARVEST,
            RESET,
            source="KVM_DIRTY_RING_RSVD_ENTRIES; kvm_dirty_ring_soft_full",
            mappings=(Mapping("memory", slot.pages),),
        ),
        ring_scenario(
            "ring-full-of-one-vcpu",
            "A full ring stops its own vCPU only, and takes nothing from the others.",
            enable,
            slot.create(),
            *writes(slot, 0, slot.pages - 1, vcpu=1),
            *_in_pieces(slot, range(1, slot.pages - 1)),
            *writes(slot, 7, vcpu=1),
            HarvestDirtyRing(0),
            HarvestDirtyRing(1),
            RESET,
            *writes(slot, 0, 1),
            HarvestDirtyRing(0),
            RESET,
            mappings=(Mapping("memory", slot.pages),),
            vcpus=2,
        ),
    )


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios about the dirty ring."""
    enable = EnableCap("DIRTY_LOG_RING", features.dirty_ring_bytes or PAGE_SIZE_BYTES)
    return (
        *_named(enable),
        *_instructions(enable),
        *_resets(enable),
        *_without_reset(enable),
        *_logged_slots(enable),
        *_changed_slots(enable),
        *_shorter_slots(enable),
        *_vcpus(enable),
        *_written_by_two(enable),
        *_round_trips(enable),
        *_nearly_full(enable),
    )
