"""Slots as large as those of real machines; memory that nobody touches costs nothing."""

from vmm.catalogue._build import API, Slot, at, creates, read, write
from vmm.scenario.operations import (
    READONLY,
    AnyOperation,
    ChangeHostMemory,
    HostWrite,
    Mapping,
    Place,
    Scenario,
)

_GIB = 1 << 18
_BIG = Mapping("big", 64 * _GIB)
_RAM = Mapping("ram", 4 * _GIB)
_ROM = Mapping("rom", 64)
_HUGE = Mapping("huge", 2 * _GIB, "thp")
_LONG = Mapping("long", 4 * _GIB + 8)

_FOUR_GIB = 4 * _GIB
_SLOT = Slot(1, _FOUR_GIB, at("big"), 64 * _GIB)
_PAGES = (0, 511, 512, _GIB - 1, _GIB, 33 * _GIB + 7, 63 * _GIB, 64 * _GIB - 1)

_FOLLOWING = Slot(1, _FOUR_GIB, at("long"), 4 * _GIB + 8)
_ITS_PAGES = (0, 7, 8, 9, 2 * _GIB, 4 * _GIB - 1, 4 * _GIB, 4 * _GIB + 6, 4 * _GIB + 7)

_LOW = Slot(0, 0, at("ram"), 0xA0)
_SHADOW = Slot(1, 0xC0, at("ram", 0xC0), 0x40)
_MAIN = Slot(2, 0x100, at("ram", 0x100), 2 * _GIB - 0x100)
_HIGH = Slot(3, _FOUR_GIB, at("ram", 2 * _GIB), 2 * _GIB)
_FIRMWARE = Slot(4, 0xE_0000, at("rom"), 64, READONLY)


def _sized(name: str, why: str, *operations: AnyOperation, mapping: Mapping) -> Scenario:
    mappings = (mapping, _ROM) if mapping is _RAM else (mapping,)
    needs = {_RAM: ("readonly_mem",), _LONG: ("sync_mmu",)}.get(mapping, ())
    return Scenario(
        name=f"sizes-{name}",
        why=why,
        source=API,
        tags=("create", "large", "slow"),
        needs=needs,
        mappings=mappings,
        operations=operations,
    )


SCENARIOS = (
    _sized(
        "64-gib-in-a-slot",
        "A slot of 64 GiB reaches its memory at both ends, at borders of huge pages and between, "
        "even after a move.",
        _SLOT.create(),
        *(write(_FOUR_GIB + page, page + 1) for page in _PAGES),
        HostWrite(Place("big", (40 * _GIB + 3) << 12), 0x4040),
        read(_FOUR_GIB + 40 * _GIB + 3, 0),
        _SLOT.move(_FOUR_GIB + 1),
        *(read(_FOUR_GIB + 1 + page) for page in _PAGES),
        *(write(_FOUR_GIB + 1 + page, page + 2, 0x200) for page in _PAGES[::2]),
        _SLOT.delete(),
        *(read(_FOUR_GIB + 1 + page) for page in _PAGES),
        mapping=_BIG,
    ),
    _sized(
        "more-than-4-gib-followed",
        "A slot of more than 4 GiB follows its mapping at both ends and in between.",
        _FOLLOWING.create(),
        *(write(_FOUR_GIB + page, page + 1) for page in _ITS_PAGES),
        *(ChangeHostMemory(at("long", page), 1, "drop") for page in _ITS_PAGES),
        *(read(_FOUR_GIB + page) for page in _ITS_PAGES),
        _FOLLOWING.move(_FOUR_GIB + 1),
        *(write(_FOUR_GIB + 1 + page, page + 2) for page in _ITS_PAGES),
        ChangeHostMemory(at("long"), 4 * _GIB + 8, "drop"),
        *(read(_FOUR_GIB + 1 + page) for page in _ITS_PAGES),
        mapping=_LONG,
    ),
    _sized(
        "q35-of-4-gib",
        "The memory of a q35 machine of 4 GiB: around the VGA hole and below the PCI hole, the "
        "rest from 4 GiB on; firmware below, and its shadow, which turns READONLY and back.",
        *creates(_LOW, _SHADOW, _MAIN, _HIGH, _FIRMWARE),
        *(write(gfn, gfn + 1) for gfn in (0, 0x9F, 0xC0, 0xFF, 0x100, 2 * _GIB - 1)),
        *(write(_FOUR_GIB + page, page + 2) for page in (0, _GIB, 2 * _GIB - 1)),
        read(0xA0),
        read(2 * _GIB),
        _SHADOW.delete(),
        Slot(1, 0xC0, at("ram", 0xC0), 0x40, READONLY).create(),
        write(0xC0, 0x1234),
        read(0xC0),
        Slot(1, 0xC0, at("ram", 0xC0), 0x40, READONLY).delete(),
        _SHADOW.create(),
        write(0xC0, 0x5678),
        read(0xC0),
        mapping=_RAM,
    ),
    _sized(
        "2-gib-of-huge-pages",
        "A slot of 2 GiB on transparent huge pages reaches its memory.",
        Slot(1, _FOUR_GIB, at("huge"), 2 * _GIB).create(),
        *(write(_FOUR_GIB + page, page + 1) for page in (511, 512, _GIB, 2 * _GIB - 1)),
        Slot(1, _FOUR_GIB, at("huge"), 2 * _GIB).move(_FOUR_GIB + 0x200),
        *(read(_FOUR_GIB + 0x200 + page) for page in (511, 512, _GIB, 2 * _GIB - 1)),
        mapping=_HUGE,
    ),
)
"""All scenarios about the size of a slot."""
