"""Slots of every kind follow all that the host does: of any flags, id and age, for any vCPU."""

from collections.abc import Callable, Iterable, Iterator
from typing import Unpack

from vmm.catalogue._area import Area, Own
from vmm.catalogue._build import Slot, at, creates, read, write
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    READONLY,
    AnyOperation,
    ChangeHostMemory,
    HostChangeKind,
    Mapping,
    Scenario,
)

_PAGES = 3
_MIDDLE = 1
_MAPPINGS = (
    Mapping("a", _PAGES),
    Mapping("file", _PAGES, "memfd"),
    Mapping("shared", _PAGES, "shared"),
)
_GFNS = {"a": 0x100, "file": 0x108, "shared": 0x110}
_AWAY = 0x80
_TWIN = 0x20
"""Where a READONLY slot has a twin on the same memory, which the guest can write to."""

_THERE_AND_BACK: tuple[tuple[HostChangeKind, ...], ...] = (
    ("unmap", "map"),
    ("forbid", "allow"),
    ("write_protect", "allow"),
)
_CHANGES: dict[str, tuple[tuple[HostChangeKind, ...], ...]] = {
    "a": (
        ("drop",),
        ("page_out",),
        ("move_away", "move_back"),
        *_THERE_AND_BACK,
        ("map_fresh",),
        ("drop",),
    ),
    "file": (
        ("punch",),
        *_THERE_AND_BACK,
        ("truncate", "extend"),
        ("drop",),
        ("page_out",),
        ("punch",),
    ),
    "shared": (("punch",), ("page_out",), ("drop",), ("punch",)),
}
"""What happens to the page in the middle, by mapping: the last change of each group mends it."""

_area = Area(
    prefix="follow-in-",
    tags=("follow",),
    source="KVM_CAP_SYNC_MMU; kvm_mmu_notifier_invalidate_range_start",
    needs=("sync_mmu",),
    mappings=_MAPPINGS,
    survey="none",
)


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios; the last id is the kernel's own."""
    last = features.nr_memslots - 1
    return (
        _follow("a-readonly-slot", "A READONLY slot", _slots((1, 2, 3), READONLY), _with_a_twin),
        _follow("a-logged-slot", "A logged slot", _slots((1, 2, 3), LOG_DIRTY_PAGES)),
        _follow("a-slot-created-anew", "A slot whose id was in use before", _mixed(), _anew),
        _follow("a-slot-that-moved-twice", "A slot that has moved", _mixed(), _moved),
        _follow(
            "slots-of-the-lowest-and-the-highest-ids",
            "A slot of the lowest or the highest id, logged or not,",
            _slots((0, last, last - 1), LOG_DIRTY_PAGES),
            _logged_later,
        ),
        _follow("slots-of-two-vcpus", "A slot that two vCPUs use", _mixed(), vcpus=2),
    )


def _mixed() -> tuple[Slot, ...]:
    """Return slots of which the first is not logged."""
    return _slots()[:1] + _slots(flags=LOG_DIRTY_PAGES)[1:]


def _slots(ids: tuple[int, int, int] = (1, 2, 3), flags: int = 0) -> tuple[Slot, ...]:
    return tuple(
        Slot(number, _GFNS[mapping.name], at(mapping.name), _PAGES, flags)
        for number, mapping in zip(ids, _MAPPINGS, strict=True)
    )


def _with_a_twin(slot: Slot) -> Iterator[AnyOperation]:
    yield slot.create()
    yield Slot(slot.slot + 3, slot.gfn + _TWIN, slot.hva, _PAGES).create()


def _anew(slot: Slot) -> Iterator[AnyOperation]:
    """Create a slot elsewhere, use and delete it, and create it at its place."""
    yield slot.move(slot.gfn + _AWAY)
    yield from (read(slot.gfn + _AWAY + page) for page in range(_PAGES))
    yield slot.delete()
    yield slot.create()


def _moved(slot: Slot) -> Iterator[AnyOperation]:
    for gfn in (slot.gfn + _AWAY, slot.gfn + 1, slot.gfn):
        yield slot.move(gfn)
        yield read(gfn + _MIDDLE)


def _logged_later(slot: Slot) -> Iterator[AnyOperation]:
    """Create a slot; the lowest is logged after it was used, the others at once."""
    if slot.slot == 0:
        yield slot.move(slot.gfn, flags=0)
        yield from (read(slot.gfn + page) for page in range(_PAGES))
    yield slot.create()


def _follow(
    name: str,
    who: str,
    slots: tuple[Slot, ...],
    made: Callable[[Slot], Iterable[AnyOperation]] = creates,
    **own: Unpack[Own],
) -> Scenario:
    """Return a scenario that changes the memory of each slot, and looks at it after each change."""
    vcpus = own.get("vcpus", 1)
    return _area(
        name,
        f"{who} follows its memory through everything that the host does with it.",
        *(op for slot in slots for op in made(slot)),
        *(op for slot in slots for op in _look(slot, 1, vcpus)),
        *(op for slot in slots for op in _changed(slot, vcpus)),
        **own,
    )


def _changed(slot: Slot, vcpus: int) -> Iterator[AnyOperation]:
    """Change the page in the middle in each way; it is written to once it is mended."""
    (mapping,) = (name for name, gfn in _GFNS.items() if gfn == slot.gfn)
    place = at(mapping, _MIDDLE)
    for turn, group in enumerate(_CHANGES[mapping], 2):
        for how in group:
            is_cut = how in ("truncate", "extend")
            yield ChangeHostMemory(place, _PAGES - _MIDDLE if is_cut else 1, how)
            yield from _look(slot, turn, vcpus)
        beside = _TWIN if slot.flags & READONLY else 0
        yield write(slot.gfn + beside + _MIDDLE, 0xAB0000 + turn, 0)


def _look(slot: Slot, turn: int, vcpus: int) -> Iterator[AnyOperation]:
    """Read every page on each vCPU, write to it, and read its log."""
    for page in range(_PAGES):
        yield from (read(slot.gfn + page, 0, vcpu) for vcpu in range(vcpus))
        yield write(slot.gfn + page, (turn << 16) + page, 0x200, turn % vcpus)
        yield read(slot.gfn + page, 0x200)
    if slot.flags & LOG_DIRTY_PAGES:
        yield slot.log()
