"""Legal calls right after refused ones: a refusal has no effect, not even on the next call."""

from collections.abc import Iterator
from dataclasses import replace

import msgspec

from vmm.catalogue._area import Area
from vmm.catalogue._build import Slot, at, but, creates, write
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    ClearDirtyLog,
    GetDirtyLog,
    SetUserMemoryRegion,
)

_LIVE = Slot(1, 0x100, at("a"), 2, LOG_DIRTY_PAGES)
_PLAIN = replace(_LIVE, flags=0)
_OTHER = Slot(2, 0x104, at("b"), pages=2)
_NEW = Slot(3, 0x108, at("a", 4))
_ELSEWHERE = at("b", 4)
_END = (1 << 64) - PAGE_SIZE_BYTES


def _refused_anyhow(slot: Slot) -> Iterator[SetUserMemoryRegion]:
    """Yield calls that are refused whether or not the id has a slot: one for each check."""
    call = slot.create()
    yield msgspec.structs.replace(call, caller="forked-child")
    yield msgspec.structs.replace(call, argument="unreadable")
    yield but(call, flags=slot.flags | 1 << 3)
    yield but(call, memory_size=call.memory_size + 1)
    yield but(call, guest_phys_addr=call.guest_phys_addr + 1)
    yield but(call, userspace_addr=1 << 63)
    yield but(call, guest_phys_addr=_END, memory_size=2 * PAGE_SIZE_BYTES)
    yield replace(slot, slot=0xFFFF).create()
    yield replace(slot, slot=slot.slot | 0x7FFF << 16).create()
    yield but(slot.delete(), userspace_addr=1 << 63)
    yield slot.move(_OTHER.gfn)


def _refused_changes(slot: Slot) -> Iterator[AnyOperation]:
    """Yield calls that are refused where the id has a slot, and those that fail on its log."""
    yield from _refused_anyhow(slot)
    yield replace(slot, hva=_ELSEWHERE).create()
    yield replace(slot, pages=slot.pages + 1).create()
    yield slot.change(slot.flags ^ READONLY)
    yield slot.move(0x106, slot.flags ^ READONLY)
    yield Slot(5, slot.gfn, _ELSEWHERE).create()
    yield Slot(5, 0, 0).delete()
    yield GetDirtyLog(0xFFFF)
    yield ClearDirtyLog(slot.slot, 1, 64)


def _refused_creations(slot: Slot) -> Iterator[SetUserMemoryRegion]:
    """Yield calls that are refused where the id has none: of other memory than the slot's."""
    yield from _refused_anyhow(replace(slot, hva=_ELSEWHERE))
    yield replace(slot, gfn=_OTHER.gfn, flags=LOG_DIRTY_PAGES, hva=_ELSEWHERE).create()
    yield replace(slot, gfn=_OTHER.gfn + 1, flags=READONLY, hva=_ELSEWHERE).create()
    yield slot.delete()


def _before_each(*calls: AnyOperation) -> Iterator[AnyOperation]:
    """Yield these calls again and again, each time after another refusal, and then the log."""
    for number, refused in enumerate(_refused_changes(_LIVE)):
        yield write(_LIVE.gfn + number % 2, number)
        yield refused
        yield from calls
        yield _LIVE.log()


def _refused_with_other_flags(slot: Slot, flags: int) -> Iterator[AnyOperation]:
    """Yield calls that are refused and ask for other flags than the slot has."""
    other = replace(slot, flags=flags)
    yield from _refused_anyhow(other)
    yield replace(other, hva=_ELSEWHERE).create()
    yield replace(other, pages=other.pages + 1).create()
    yield replace(other, pages=other.pages - 1).move(0x106)
    yield replace(other, flags=flags | READONLY).create()


def _logs_that_stay() -> Iterator[AnyOperation]:
    yield _PLAIN.create()
    for refused in _refused_with_other_flags(_PLAIN, LOG_DIRTY_PAGES):
        yield from (refused, _PLAIN.log())
    yield _LIVE.create()
    for number, refused in enumerate(_refused_with_other_flags(_LIVE, 0)):
        yield from (refused, write(_LIVE.gfn + number % 2, number), _LIVE.log())


def _moves() -> Iterator[AnyOperation]:
    here, there = _LIVE, replace(_LIVE, gfn=0x101)
    yield here.create()
    for number, refused in enumerate(_refused_changes(_LIVE)):
        moved = there if number % 2 == 0 else here
        yield from (refused, moved.create(), write(moved.gfn, number), moved.log())


def _creations() -> Iterator[AnyOperation]:
    for refused in _refused_creations(_NEW):
        yield from (refused, refused, _NEW.create(), _NEW.delete())


_refused_before = Area(
    prefix="after-refusals-",
    tags=("errno",),
    source="__kvm_set_memory_region: all checks precede any change",
    before=creates(_OTHER),
    needs=("readonly_mem",),
    survey="read",
)


SCENARIOS = (
    _refused_before(
        "nothing-changes",
        "After each refusal a call that changes nothing changes nothing, and the log goes on.",
        _LIVE.create(),
        *_before_each(_LIVE.create()),
    ),
    _refused_before(
        "flags-change",
        "After each refusal logging is turned off and on, and begins anew.",
        _LIVE.create(),
        *_before_each(_PLAIN.create(), _LIVE.create()),
    ),
    msgspec.structs.replace(
        _refused_before(
            "logging-is-as-it-was",
            "A refused call that asks to turn logging on, or off, does not.",
            *_logs_that_stay(),
        ),
        survey="none",
    ),
    _refused_before(
        "a-slot-moves",
        "After each refusal a move takes the slot, its memory and its log along.",
        *_moves(),
    ),
    _refused_before(
        "a-slot-is-made-anew",
        "After each refusal a slot is deleted, and the next one with its id has its own values.",
        _LIVE.create(),
        *_before_each(_LIVE.delete(), replace(_PLAIN, gfn=0x101).create(), _PLAIN.delete(),
                      _LIVE.create()),
    ),
    _refused_before(
        "a-slot-is-created",
        "After two equal refusals for an id a slot is created with its own values, not theirs.",
        *_creations(),
    ),
)  # fmt: skip
"""All scenarios in which each refusal precedes a legal call."""
