"""Dirty logs, clearing and dirty rings of every kind of slot: its neighbours, moves and past."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vmm.catalogue._area import Area
from vmm.catalogue._build import API_DIRTY, B, Slot, at
from vmm.catalogue._dirty import (
    API_CLEAR,
    API_RING,
    HARVEST,
    MANUAL,
    RESET,
    clear,
    clearing,
    ring_scenario,
    writes,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    READONLY,
    AnyOperation,
    EnableCap,
    Mapping,
    Scenario,
)

_MEMORY = Mapping("memory", 70)
_MAPPINGS = (_MEMORY, B)
_GFN = 0x200
_SLOT = Slot(1, _GFN, at("memory"), 66, LOG_DIRTY_PAGES)
_END = _GFN + _SLOT.pages
_PAGES = (0, 1, 63, 64, 65)
_TO = {
    "down": _GFN - 0x80,
    "up": _GFN + 0x80,
    "down onto itself": _GFN - 1,
    "up onto itself": _GFN + 1,
    "above 4 GiB": 1 << 20,
    "past another one": _GFN + 0x100,
    "by a huge page": _GFN + 512,
    "to gpa 0": 0,
}
_OTHER = Slot(2, _GFN + 0x90, at("b"), 4, LOG_DIRTY_PAGES)


_log = Area(tags=("dirty",), source=API_DIRTY, survey="none", mappings=_MAPPINGS)


_FEW = 4


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of slot: what makes it, and, perhaps, where it is moved once pages are dirty."""

    made: tuple[AnyOperation, ...]
    slot: Slot = _SLOT
    moved: int | None = None
    others: tuple[Slot, ...] = ()


def _moved() -> Iterator[_Kind]:
    """Yield slots that move while pages are dirty, to each place; and those that moved before."""
    for gfn in _TO.values():
        yield _Kind((_OTHER.create(), _SLOT.create()), moved=gfn, others=(_OTHER,))
    for gfn in (_TO["down onto itself"], _TO["up"], _TO["above 4 GiB"]):
        yield _Kind((_SLOT.move(gfn), _SLOT.create()))


def _beside() -> Iterator[_Kind]:
    """Yield slots with each kind of neighbour, above and below, or on the same memory."""
    for flags in (0, LOG_DIRTY_PAGES, READONLY, READONLY | LOG_DIRTY_PAGES):
        above, below = Slot(2, _END, at("b"), 2, flags), Slot(3, _GFN - 2, at("b", 2), 2, flags)
        shared = Slot(4, _END + 0x10, at("memory"), 70, flags)
        for others in ((above,), (below,), (above, below), (shared,)):
            yield _Kind((*(other.create() for other in others), _SLOT.create()), others=others)


def _made() -> Iterator[_Kind]:
    """Yield slots whose id was another's before, or whose logging was turned on in some way."""
    plain = replace(_SLOT, flags=0)
    for pages in (1, 64, 65, 70):
        former = replace(_SLOT, pages=pages)
        yield _Kind((former.create(), *writes(former, 0), former.delete(), _SLOT.create()))
    yield _Kind((plain.create(), _SLOT.create()))
    yield _Kind((plain.create(), plain.move(_GFN + 1), _SLOT.create()))
    yield _Kind((_SLOT.create(), plain.create(), _SLOT.create()))
    for number in (0, 63, 64, 508):
        yield _Kind((replace(_SLOT, slot=number).create(),), replace(_SLOT, slot=number))
    for pages in (1, 63, 64):
        yield _Kind((replace(_SLOT, pages=pages).create(),), replace(_SLOT, pages=pages))


def _readonly() -> Iterator[_Kind]:
    slot = replace(_SLOT, flags=LOG_DIRTY_PAGES | READONLY)
    yield _Kind((slot.create(),), slot)
    yield _Kind((slot.create(),), slot, moved=_GFN - 1)
    yield _Kind((replace(slot, flags=READONLY).create(), slot.create()), slot)


def _written(kind: _Kind, *pages: int) -> tuple[AnyOperation, ...]:
    """Write to pages of a slot, move it if its kind is moved then, and write to the last one."""
    slot = kind.slot
    inside = [page for page in pages if page < slot.pages]
    now = slot if kind.moved is None else replace(slot, gfn=kind.moved)
    move = () if kind.moved is None else (now.create(),)
    return (*writes(slot, *inside), *move, *writes(now, slot.pages - 1))


def _back(kind: _Kind) -> tuple[AnyOperation, ...]:
    return () if kind.moved is None else (kind.slot.create(),)


def _ended(kind: _Kind) -> tuple[AnyOperation, ...]:
    return tuple(slot.delete() for slot in (kind.slot, *kind.others))


def _logged(kinds: tuple[_Kind, ...]) -> Iterator[AnyOperation]:
    """Read the log of each kind of slot after writes, twice, and those of the others."""
    for kind in kinds:
        yield from kind.made
        for pages in (_PAGES, (1, 64)):
            yield from _written(kind, *pages)
            yield kind.slot.log()
            yield from (other.log() for other in kind.others if other.flags & LOG_DIRTY_PAGES)
            yield from _back(kind)
        yield kind.slot.log()
        yield from _ended(kind)


def _cleared(kinds: tuple[_Kind, ...]) -> Iterator[AnyOperation]:
    """Clear a part of the log of each kind of slot, write again, and clear the rest."""
    for kind in kinds:
        slot, words = kind.slot, min(64, kind.slot.pages)
        yield from (*kind.made, *_written(kind, *_PAGES))
        yield from (clear(slot, 0, words, 0, 1), slot.log())
        yield from (*_back(kind), *_written(kind, 0))
        yield from (slot.log(), clear(slot, 0, slot.pages), slot.log())
        yield from _ended(kind)


def _in_the_ring(kinds: tuple[_Kind, ...]) -> Iterator[AnyOperation]:
    """Harvest what was written to each kind of slot, and reset it."""
    for kind in kinds:
        yield from (*kind.made, *_written(kind, 1, 64), HARVEST, RESET)
        yield from (*_back(kind), *_written(kind, 0), HARVEST, RESET)
        yield from _ended(kind)


_GROUPS = (
    (
        "moved",
        "A slot keeps its log wherever it is moved, before pages are written or after: down, up, "
        "onto itself, past another slot or above 4 GiB.",
        tuple(_moved()),
        (),
    ),
    (
        "beside-others",
        "A slot's log is its own beside slots of every kind, above, below or on the same memory.",
        tuple(_beside()),
        ("readonly_mem",),
    ),
    (
        "of-made-slots",
        "A slot's log begins empty and is exact, however the slot came about: with a new id or "
        "one that was used for another size, logged from the start or not.",
        tuple(_made()),
        (),
    ),
    (
        "of-readonly-slots",
        "A READONLY slot has a log, which stays empty, and can be cleared.",
        tuple(_readonly()),
        ("readonly_mem",),
    ),
)


def _never_logged() -> Iterator[AnyOperation]:
    """Read and clear logs that do not exist: before the flag is set, without it and after it."""
    for pages, flags in ((1, 0), (64, 0), (70, 0), (70, READONLY)):
        slot = replace(_SLOT, pages=pages, flags=flags)
        looks = (slot.log(), clear(slot, 0, pages))
        yield from (slot.create(), *looks)
        yield from (slot.change(flags | LOG_DIRTY_PAGES), slot.log(), slot.create(), *looks)
        yield from (slot.delete(), *looks)


_WITHOUT_LOG = _log(
    "dirty-logs-of-slots-without-logging",
    "Without LOG_DIRTY_PAGES there is no log, however large the slot, and READONLY or not: "
    "reading and clearing it are ENOENT, before the flag is set and after it is cleared.",
    *_never_logged(),
    source=f"{API_DIRTY}; {API_CLEAR}",
    needs=("manual_dirty_log", "readonly_mem"),
)


def _scenarios() -> Iterator[Scenario]:
    """Yield three scenarios a group; of the large groups only the first is quick enough."""
    for name, why, kinds, needs in _GROUPS:
        tags = ("slow",) if len(kinds) > _FEW else ()
        yield _log(f"dirty-logs-{name}", why, *_logged(kinds), needs=needs)
        yield clearing(
            f"clear-logs-{name}",
            f"{why} What is cleared is clean there, and nothing else.",
            MANUAL,
            *_cleared(kinds),
            tags=tags,
            needs=needs,
            mappings=_MAPPINGS,
            source=API_CLEAR,
        )
        yield ring_scenario(
            f"ring-{name}",
            f"{why} So do dirty rings name its pages.",
            EnableCap("DIRTY_LOG_RING", 1 << 16),
            *_in_the_ring(kinds),
            tags=tags,
            needs=needs,
            mappings=_MAPPINGS,
            source=API_RING,
        )


SCENARIOS = (*_scenarios(), _WITHOUT_LOG)
