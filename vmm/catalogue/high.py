"""Gpas from 4 GiB on, which only a guest in 64-bit mode reaches, up to the last gfn."""

from collections.abc import Iterator

from vmm.catalogue._area import Area
from vmm.catalogue._build import (
    API,
    HUGE,
    STALE_SLOT,
    WITHOUT_ZAP_ALL,
    B,
    Slot,
    at,
    creates,
    deletes,
    read,
    write,
)
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    ChangeHostMemory,
    Execute,
    Guest,
    Mapping,
    Scenario,
    Sweep,
    Touch,
)

_BORDER_GFN = 1 << 20  # 4 GiB
_BORDER = _BORDER_GFN * PAGE_SIZE_BYTES
_TIB_GFN = 1 << 28
_HIGH_GFN = 0x12_3456
_ONE = Slot(1, _HIGH_GFN, at("a"), pages=2)


_high = Area(tags=("high",), source=API, guest=Guest(gpa=0x10000))
"""The guest lies away from the border."""


def _straddling() -> tuple[AnyOperation, ...]:
    """Return a write and a read of four bytes for each position across the border or beside it."""
    return tuple(
        operation
        for before in range(5)
        for operation in (
            Touch(_BORDER - before, "write", value=0xF1E2D3C4 ^ before),
            Touch(_BORDER - before),
        )
    )


_PLACES = (
    _high(
        "high-create-over-the-4-gib-border",
        "A slot that begins below 4 GiB and ends above it is one slot.",
        Slot(1, _BORDER_GFN - 2, at("a"), pages=4).create(),
        *_straddling(),
        tags=("create",),
    ),
    _high(
        "high-create-on-both-sides-of-4-gib",
        "Two slots meet at 4 GiB: each reaches its own memory, and none the other's.",
        *creates(Slot(1, _BORDER_GFN - 1, at("a")), Slot(2, _BORDER_GFN, at("b"))),
        *_straddling(),
        Slot(1, 0, 0).delete(),
        *_straddling(),
        tags=("create",),
    ),
    _high(
        "high-create-at-1-tib",
        "A slot can lie far above the host's own memory.",
        *creates(Slot(1, _TIB_GFN, at("a"), pages=2), Slot(2, _TIB_GFN - 1, at("b"))),
        Slot(1, 0, 0).delete(),
        tags=("create",),
    ),
    _high(
        "high-twins",
        "Gpas that differ only in one bit above bit 31 are different gpas.",
        *creates(
            Slot(1, 0x100, at("a")),
            *(Slot(2 + n, 0x100 | 1 << 20 + n, at("b", n)) for n in range(4)),
        ),
        Slot(3, 0, 0).delete(),
        Slot(1, 0, 0).delete(),
        tags=("create",),
    ),
    _high(
        "high-create-on-huge-pages",
        "Above 4 GiB, too, a slot aligned with huge pages reaches only its own pages.",
        Slot(1, 0x14_0000, at("huge"), pages=513).create(),
        tags=("huge",),
        mappings=(HUGE,),
    ),
)

_MOVES = (
    _high(
        "high-move-from-below-and-back",
        "A slot moves across 4 GiB with its content, and leaves nothing behind.",
        Slot(1, 0x100, at("a"), pages=2).create(),
        write(0x101, 0xC0FFEE11),
        Slot(1, _HIGH_GFN, at("a"), pages=2).create(),
        read(_HIGH_GFN + 1),
        write(_HIGH_GFN, 0xC0FFEE22),
        Slot(1, 0x100, at("a"), pages=2).create(),
        read(0x100),
        source=STALE_SLOT,
        tags=("move",),
    ),
    _high(
        "high-move-over-the-border-by-one-page",
        "Moves onto overlapping gfns take pages across 4 GiB in both directions.",
        Slot(1, _BORDER_GFN - 3, at("a"), pages=3).create(),
        *(Slot(1, _BORDER_GFN + n, at("a"), pages=3).create() for n in (-2, -1, 0, -1)),
        source=STALE_SLOT,
        tags=("move",),
    ),
    _high(
        "high-move-again-and-again",
        "A vCPU that used a slot above 4 GiB reaches none of the gpas that the slot has left.",
        *(Slot(1, gfn, at("a"), pages=2).create() for gfn in (
            _HIGH_GFN, _TIB_GFN, _HIGH_GFN + 1, _BORDER_GFN, _TIB_GFN, _HIGH_GFN,
        )),
        # The gpa's bits below 4 GiB alone are another gpa.
        Touch((_HIGH_GFN + 1) % _BORDER_GFN * PAGE_SIZE_BYTES),
        source=STALE_SLOT,
        tags=("move",),
    ),
    _high(
        "high-move-with-two-vcpus",
        "Every vCPU that used a slot sees that it has moved, and that another takes its place.",
        *creates(_ONE, Slot(2, 0x100, at("b"), pages=2)),
        _ONE.move(_TIB_GFN),
        Slot(2, _HIGH_GFN, at("b"), pages=2).create(),
        Slot(1, 0, 0).delete(),
        source=STALE_SLOT,
        tags=("vcpus",),
        vcpus=2,
    ),
    _high(
        "high-move-onto-another",
        "A move onto another slot above 4 GiB is EEXIST, and the slot stays where it was.",
        *creates(_ONE, Slot(2, _TIB_GFN, at("b"), pages=2)),
        _ONE.move(_TIB_GFN - 1),
        _ONE.move(_TIB_GFN + 1),
        _ONE.move(_TIB_GFN + 2),
        tags=("move",),
    ),
)  # fmt: skip

_ACCESS = (
    _high(
        "high-sweep-over-borders",
        "String instructions cross 4 GiB, from slot to slot, and end in a hole.",
        *creates(
            Slot(1, _BORDER_GFN - 1, at("a")), Slot(2, _BORDER_GFN, at("b")),
        ),
        Sweep(_BORDER - 0x20, 16, "write", value=0xA1B2C3D4),
        Sweep(_BORDER - 0x21, 64, width=1),
        Sweep(_BORDER + PAGE_SIZE_BYTES - 0x20, 10),
        Sweep(_BORDER + PAGE_SIZE_BYTES - 0x20, 10, "write", value=0x55667788),
        tags=("access",),
    ),
    _high(
        "high-execute-then-move-then-execute",
        "After a move the instructions are at the new gpa, and gone from the old one.",
        _ONE.create(),
        Execute((_HIGH_GFN + 1) * PAGE_SIZE_BYTES),
        _ONE.move(_HIGH_GFN + 0x1000),
        Execute((_HIGH_GFN + 0x1001) * PAGE_SIZE_BYTES),
        Execute((_HIGH_GFN + 1) * PAGE_SIZE_BYTES),
        source=STALE_SLOT,
        tags=("execute",),
    ),
    _high(
        "high-readonly",
        "A READONLY slot is read as memory; a write exits and changes nothing.",
        Slot(1, _HIGH_GFN, at("a"), 2, READONLY).create(),
        write(_HIGH_GFN, 0x01020304),
        read(_HIGH_GFN),
        Slot(1, _HIGH_GFN + 1, at("a"), 2, READONLY).create(),
        tags=("readonly",),
        needs=("readonly_mem",),
    ),
    _high(
        "high-dirty-log",
        "The dirty log names the pages that were written, across a move, too.",
        Slot(1, _BORDER_GFN - 2, at("a"), 4, LOG_DIRTY_PAGES).create(),
        Touch(_BORDER - 2, "write", value=0x11223344),
        Slot(1, 0, 0).log(),
        write(_BORDER_GFN + 1, 5),
        Slot(1, _HIGH_GFN, at("a"), 4, LOG_DIRTY_PAGES).create(),
        write(_HIGH_GFN, 6),
        Slot(1, 0, 0).log(),
        Slot(1, 0, 0).log(),
        tags=("dirty",),
        survey="read",
    ),
)  # fmt: skip


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return all scenarios about gpas from 4 GiB on; the last gfn depends on the kernel."""
    return (
        *_PLACES,
        *_MOVES,
        *_ACCESS,
        _at_every_address_bit(features),
        *_at_the_end(features.last_gfn),
        *_zapped_at_the_end(features.last_gfn),
    )


def _at_every_address_bit(features: Features) -> Scenario:
    reach = min(features.last_gfn + 1, features.touch_limit // PAGE_SIZE_BYTES)
    bits = range(_BORDER_GFN.bit_length() - 1, reach.bit_length() - 1)
    twins = [Slot(1 + n, 0x100 | 1 << bit, at("a", n)) for n, bit in enumerate(bits)]
    looks = [read(slot.gfn) for slot in (Slot(0, 0x100, at("b")), *twins)]
    return _high(
        "high-twins-at-every-address-bit",
        "Gpas that differ in any one address bit are different, in memory and in MMIO exits.",
        Slot(0, 0x100, at("b")).create(),
        *creates(*twins),
        *looks,
        *deletes(*twins[::2]),
        *looks,
        *deletes(*twins[1::2]),
        *looks,
        mappings=(Mapping("a", max(len(twins), 1)), B),
        survey="none",
        tags=("create",),
    )


def _dropped(slot: Slot) -> Iterator[AnyOperation]:
    """Write to a slot, drop its memory, and read what is there then."""
    yield from (write(slot.gfn + page, 0x0A0B_0C00 + page) for page in range(slot.pages))
    yield ChangeHostMemory(at("a"), slot.pages, "drop")
    yield from (read(slot.gfn + page) for page in range(slot.pages))


def _at_the_end(last_gfn: int) -> tuple[Scenario, ...]:
    high = Slot(1, last_gfn - 0x10, at("a"), pages=2)
    return (
        _high(
            "high-refused-move-beyond-the-last-gfn",
            "If a move fails after the slot was invalidated, the slot is put back at its high gfn.",
            high.create(),
            high.move(last_gfn),
            high.move(last_gfn + 1),
            high.move(last_gfn - 1),
            high.move(last_gfn),
            source="kvm_arch_prepare_memory_region",
            tags=("move",),
        ),
        _high(
            "high-use-the-last-gfn",
            "The last page is read, written and executed like any other.",
            Slot(1, last_gfn, at("a")).create(),
            write(last_gfn, 0x0A0B0C0D, 0xFFC),
            read(last_gfn, 0xFFC),
            Execute(last_gfn * PAGE_SIZE_BYTES),
            Sweep((last_gfn + 1) * PAGE_SIZE_BYTES - 0x40, 16),
            Slot(1, 0, 0).delete(),
            read(last_gfn, 0xFFC),
            source="kvm_mmu_max_gfn",
            tags=("create",),
        ),
    )


def _zapped_at_the_end(last_gfn: int) -> tuple[Scenario, ...]:
    end = Slot(1, last_gfn - 1, at("a"), pages=2)
    return (
        _high(
            "high-last-gfn-follows-host-memory",
            "What the host does to its memory is seen at the last page, too.",
            end.create(),
            *_dropped(end),
            *_dropped(end),
            source="tdp_mmu_zap_leafs, tdp_mmu_max_gfn_exclusive",
            needs=("sync_mmu",),
            survey="none",
            tags=("follow",),
        ),
        _high(
            "high-last-gfn-without-quirk",
            "If a deletion zaps one slot alone, that is all of it, the last page included.",
            WITHOUT_ZAP_ALL,
            end.create(),
            *(read(last_gfn - page) for page in range(end.pages)),
            end.delete(),
            *(read(last_gfn - page) for page in range(end.pages)),
            Slot(2, end.gfn, at("b"), end.pages).create(),
            *(read(last_gfn - page) for page in range(end.pages)),
            source="aa8d1f48d353; kvm_mmu_zap_memslot",
            needs=("slot_zap_all_quirk",),
            survey="none",
            tags=("delete", "quirks"),
        ),
    )
