"""Races of dirty logs that KVM_CLEAR_DIRTY_LOG clears, and of dirty rings."""

from dataclasses import replace
from typing import Unpack

from vmm.catalogue._area import Own
from vmm.catalogue._build import Slot, at, write
from vmm.catalogue._dirty import (
    API_CLEAR,
    API_MANUAL,
    API_RING,
    HARVEST,
    INITIALLY_SET,
    MANUAL,
    RESET,
)
from vmm.catalogue._races import host, race, writer
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    AnyOperation,
    ClearDirtyLog,
    EnableCap,
    GuestThread,
    HarvestDirtyRing,
    HostThread,
    HostWrite,
    Mapping,
    Scenario,
)

_HUGE = Mapping("huge", 1024, "thp")
_MEMORY = Mapping("memory", 130)

_GFN = 0x100
_ONE = Slot(1, _GFN, at("a"), 4, LOG_DIRTY_PAGES)
_PLAIN = replace(_ONE, flags=0)
_LARGE = Slot(1, _GFN, at("memory"), 130, LOG_DIRTY_PAGES)
_NEXT = Slot(2, _GFN + 8, at("b", 4), 2, LOG_DIRTY_PAGES)

_ELSEWHERE = 0x200
"""The gfn of a move after which the vCPUs no longer write to most pages of the slot."""

_SECOND = HarvestDirtyRing(1)
_FILLED = 48
"""Pages that one window writes to fill a ring: fewer than fit above its soft limit."""


def _clear(slot: Slot) -> ClearDirtyLog:
    return ClearDirtyLog(slot.slot, 0, slot.pages)


_CLEARED = (
    race(
        "clear",
        "A written page is in the log until it is cleared, and then only if written again.",
        (MANUAL, _ONE.create()),
        (
            host(
                _ONE.log(),
                _clear(_ONE),
                _ONE.move(_ELSEWHERE),
                _clear(_ONE),
                _ONE.log(),
                _ONE.create(),
                rounds=15,
            ),
            host(HostWrite(at("a", 3), 1), rounds=30),
        ),
        (writer(0, _GFN, _GFN + 1), writer(1, _GFN + 1, _GFN + 2, _ELSEWHERE + 2)),
        _ONE.log(),
        _clear(_ONE),
        _ONE.log(),
        source=API_CLEAR,
        needs=("manual_dirty_log",),
    ),
    race(
        "clear-parts",
        "Clearing some pages leaves the others dirty, even if no vCPU writes them any more.",
        (MANUAL, _LARGE.create()),
        (
            host(
                _LARGE.move(_ELSEWHERE),
                ClearDirtyLog(1, 64, 66, (64, 129)),
                _LARGE.log(),
                ClearDirtyLog(1, 0, 64, (0, 1)),
                _LARGE.log(),
                ClearDirtyLog(1, 0, 130),
                _LARGE.log(),
                _LARGE.create(),
                rounds=12,
            ),
        ),
        (
            writer(0, _GFN, _GFN + 63, _GFN + 64, _GFN + 129),
            writer(1, _GFN + 1, _GFN + 65, _GFN + 128, _ELSEWHERE + 2),
        ),
        _LARGE.log(),
        source=API_CLEAR,
        mappings=(_MEMORY,),
        needs=("manual_dirty_log",),
    ),
    race(
        "initially-set",
        "When logging begins all pages are dirty; after they are cleared, only written ones are.",
        (INITIALLY_SET, _PLAIN.create()),
        (
            host(
                _ONE.create(),
                _ONE.log(),
                _clear(_ONE),
                _ONE.log(),
                _PLAIN.create(),
                rounds=15,
            ),
        ),
        (writer(0, _GFN, _GFN + 1), writer(1, _GFN + 1, _GFN + 2)),
        source=API_MANUAL,
        needs=("dirty_log_initially_set",),
    ),
    race(
        "initially-set-of-huge-pages",
        "Huge pages are split as they are cleared, while vCPUs write: no write is missed.",
        (INITIALLY_SET, Slot(1, 0x200, at("huge"), 1024).create()),
        (
            host(
                Slot(1, 0x200, at("huge"), 1024, LOG_DIRTY_PAGES).create(),
                ClearDirtyLog(1, 0, 512),
                Slot(1, 0x200, at("huge")).log(),
                ClearDirtyLog(1, 512, 512),
                Slot(1, 0x200, at("huge")).log(),
                Slot(1, 0x200, at("huge"), 1024).create(),
                rounds=10,
            ),
        ),
        (writer(0, 0x200, 0x3FF), writer(1, 0x400, 0x5FF)),
        source="7cd1bf039eeb; api.rst 4.117",
        mappings=(_HUGE,),
        needs=("dirty_log_initially_set",),
    ),
)


def _ring_race(
    name: str,
    why: str,
    enable: EnableCap,
    before: tuple[AnyOperation, ...],
    hosts: tuple[HostThread, ...],
    guests: tuple[GuestThread, ...],
    **own: Unpack[Own],
) -> Scenario:
    """Return a race that begins and ends with empty rings."""
    own.setdefault("source", API_RING)
    own["needs"] = ("dirty_ring_bytes",)
    return race(
        name,
        why,
        (enable, *before, HARVEST, RESET),
        hosts,
        guests,
        RESET,
        HARVEST,
        *(HarvestDirtyRing(vcpu) for vcpu in range(1, len(guests))),
        RESET,
        **own,
    )


def _harvests(rounds: int) -> HostThread:
    return host(HARVEST, _SECOND, RESET, rounds=rounds)


def _filler(vcpu: int, slot: Slot) -> GuestThread:
    """Write to so many pages that a few windows fill a ring, if each page is tracked again."""
    value = 0x5000_0000 + (vcpu << 24)
    offset = 0x200 + 0x10 * vcpu
    return GuestThread(
        tuple(
            write(slot.gfn + page, value + (page << 16), offset, vcpu) for page in range(_FILLED)
        ),
        windows=10_000,
    )


def _rings(enable: EnableCap) -> tuple[Scenario, ...]:
    return (
        _ring_race(
            "ring",
            "Rings that are harvested and reset while vCPUs write miss no write, and invent none.",
            enable,
            (_ONE.create(),),
            (_harvests(30), host(HostWrite(at("a", 3), 1), rounds=30)),
            (writer(0, _GFN, _GFN + 1), writer(1, _GFN + 1, _GFN + 2)),
        ),
        _ring_race(
            "ring-through-moves",
            "Rings name the pages written at either place of a slot that moves to and fro.",
            enable,
            (_ONE.create(),),
            (_harvests(20), host(_ONE.move(_GFN + 8), _ONE.create(), rounds=20)),
            (writer(0, _GFN, _GFN + 9), writer(1, _GFN + 1, _GFN + 8)),
        ),
        _ring_race(
            "ring-delete-and-create",
            "A slot that is created again is tracked from its first write on, and its neighbour "
            "stays tracked.",
            enable,
            (_ONE.create(), _NEXT.create()),
            (_harvests(20), host(_ONE.delete(), _ONE.create(), rounds=25)),
            (writer(0, _GFN, _GFN + 9), writer(1, _GFN + 1, _GFN + 8)),
        ),
        _ring_race(
            "ring-flags",
            "Logging that is switched on and off is complete while it is on.",
            enable,
            (_PLAIN.create(), _NEXT.create()),
            (_harvests(20), host(_ONE.create(), _PLAIN.create(), rounds=25)),
            (writer(0, _GFN, _GFN + 9), writer(1, _GFN, _GFN + 1)),
        ),
        *_full(enable),
        _ring_race(
            "ring-under-load",
            "However fast entries are harvested, each reset ends, and frees the harvested entries.",
            enable,
            (_ONE.create(), _NEXT.create()),
            (HostThread((HARVEST, _SECOND), rounds=0), host(RESET, rounds=150, pause=0)),
            (writer(0, _GFN, _GFN + 1, _GFN + 8), writer(1, _GFN + 2, _GFN + 3, _GFN + 9)),
            source="530a8ba71b4c; kvm_dirty_ring_reset",
        ),
    )


def _full(enable: EnableCap) -> tuple[Scenario, ...]:
    """Return races in which a vCPU's ring gets full; in one another thread empties it, too."""
    slot = Slot(1, _GFN, at("memory"), 130, LOG_DIRTY_PAGES)
    toggles = host(replace(slot, flags=0).create(), slot.create(), rounds=40)
    guests = (_filler(0, slot), writer(1, _GFN, _GFN + 129))
    return (
        _ring_race(
            "ring-full",
            "vCPUs that stop at full rings, and empty them themselves, lose no page.",
            enable,
            (slot.create(),),
            (toggles,),
            guests,
            mappings=(_MEMORY,),
        ),
        _ring_race(
            "ring-full-and-harvested",
            "vCPUs that stop at full rings lose no page if another thread harvests and resets "
            "the same rings.",
            enable,
            (slot.create(),),
            (toggles, host(RESET, _SECOND, HARVEST, rounds=15, pause=2)),
            guests,
            mappings=(_MEMORY,),
        ),
    )


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the races of logs and rings."""
    enable = EnableCap("DIRTY_LOG_RING", features.dirty_ring_bytes or PAGE_SIZE_BYTES)
    return (*_CLEARED, *_rings(enable))
