"""READONLY slots: read as memory, written as MMIO, and side by side with writable ones."""

from vmm.catalogue._area import Area
from vmm.catalogue._build import HUGE, Slot, at, creates, read, write
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    Execute,
    HostWrite,
    Inspect,
    Place,
    Scenario,
    Sweep,
    Touch,
)

_API = "api.rst 4.35, KVM_MEM_READONLY; KVM_CAP_READONLY_MEM"
_RO = Slot(1, 0x100, at("a"), 2, READONLY)
_RO_EIGHT = Slot(2, 0x108, at("a"), 8, READONLY)
"""As many pages as KVM maps ahead at most, where it does."""

_RW_BELOW = Slot(2, 0xFF, at("b"))
_RW_ABOVE = Slot(3, 0x102, at("b", 2))
_START = _RO.gfn * PAGE_SIZE_BYTES
_END = (_RO.gfn + _RO.pages) * PAGE_SIZE_BYTES


_readonly = Area(tags=("readonly",), source=_API, needs=("readonly_mem",))


SCENARIOS = (
    _readonly(
        "readonly-create",
        "Reads reach memory; writes exit and change nothing, on the pages after one that was read, "
        "too.",
        _RO.create(),
        _RO_EIGHT.create(),
        source=f"{_API}; direct_pte_prefetch_many",
    ),
    _readonly(
        "readonly-every-width",
        "A write of any width exits with its own bytes.",
        _RO.create(),
        Touch(_START, "write", 1, 0x11),
        Touch(_START + 1, "write", 2, 0x2222),
        Touch(_END - 4, "write", 4, 0x44444444),
        Touch(_START, width=1),
        Touch(_START + 1, width=2),
        Touch(_END - 4),
    ),
    Scenario(
        name="readonly-on-huge-pages",
        why="A write to a huge page of a READONLY slot exits even after the page was read.",
        source=_API,
        tags=("readonly", "huge"),
        mappings=(HUGE,),
        needs=("readonly_mem",),
        survey="none",
        operations=(
            Slot(1, 0x200, at("huge"), 1024, READONLY).create(),
            *(read(0x345), write(0x345, 0xBAD), write(0x346, 0xBAD), read(0x346), Inspect()),
        ),
    ),
    _readonly(
        "readonly-shows-what-the-host-writes",
        "READONLY does not bind the host: the guest reads what the host writes.",
        _RO.create(),
        read(0x101),
        HostWrite(Place("a", PAGE_SIZE_BYTES + 0x100), 0xFACE0FF5),
        read(0x101),
    ),
    _readonly(
        "readonly-and-writable-slot-on-one-page",
        "READONLY is a property of the slot: the same page can be written through another slot.",
        *creates(_RO, Slot(2, 0x110, at("a"), pages=2)),
        write(0x110, 0xABCD1234),
        read(0x100),
        write(0x100, 0x99999999),
        read(0x110),
    ),
    _readonly(
        "readonly-between-writable-slots",
        "Accesses across the borders of a READONLY slot are split exactly there.",
        *creates(_RW_BELOW, _RO, _RW_ABOVE),
        *(Touch(_START - n, "write", 4, 0xA1A2A3A0 + n) for n in (1, 2, 3)),
        *(Touch(_END - n, "write", 4, 0xB1B2B3B0 + n) for n in (1, 2, 3)),
        Touch(_START - 2),
        Touch(_END - 2),
    ),
    _readonly(
        "readonly-next-to-a-hole",
        "A write across the end of a READONLY slot into a hole exits for both its parts.",
        _RO.create(),
        *(Touch(_END - n, "write", 4, 0xC1C2C3C0 + n) for n in (1, 2, 3)),
        *(Touch(_END - n) for n in (1, 2, 3)),
    ),
    _readonly(
        "readonly-sweep-over-its-borders",
        "A string instruction writes up to the READONLY slot, exits inside it, and continues "
        "after it.",
        *creates(_RW_BELOW, _RO, _RW_ABOVE),
        Sweep(_START - 32, 16, "write", 4, 0xD00DD00D),
        Sweep(_END - 32, 16, "write", 4, 0xE00EE00E),
        Sweep(_START - 32, 16),
        Sweep(_END - 32, 16),
    ),
    _readonly(
        "readonly-execute",
        "Instructions are fetched from a READONLY slot.",
        _RO.create(),
        Execute(_START),
        Execute(_START + PAGE_SIZE_BYTES),
    ),
    _readonly(
        "readonly-between-times-writable",
        "When READONLY and writable slots alternate at one gpa, no stale translation remains.",
        Slot(1, 0x100, at("a"), pages=2).create(),
        _RO.delete(),
        _RO.create(),
        _RO.delete(),
        Slot(1, 0x100, at("a"), pages=2).create(),
    ),
    _readonly(
        "readonly-is-never-dirty",
        "A write that exits is no write to memory: the log of a READONLY slot stays empty.",
        Slot(1, 0x100, at("a"), 2, READONLY | LOG_DIRTY_PAGES).create(),
        write(0x101, 0x12345678),
        _RO.log(),
        source="api.rst 4.8 KVM_GET_DIRTY_LOG",
    ),
)
"""All scenarios about READONLY."""
