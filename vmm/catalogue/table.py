"""Many slots: a hundred of several pages, and the whole table, filled, touched and emptied."""

import random
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

from vmm.catalogue._build import Slot, at, but, creates, deletes, read
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    Guest,
    Mapping,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)

_FIRST_GFN = 0x1000
_GUEST = Guest()

# A prime, so that no two slots whose ids or gfns differ by a power of two show the same page.
_HOST_PAGES = 4093

_SEED = 2020
_ROUNDS = 8
_BEYOND = 520
_SAMPLES = 16
_DELETED = 128
"""Slots that are deleted in the default tier; each deletion takes as long as two creations."""

_QUICK_SLOTS = 1100
"""Slots in the default tier, or the whole table if it is smaller: filling 32,764 takes a kernel
more than a second."""


_HUNDRED = tuple(Slot(number, 0x100 + 2 * number, at("a", 2 * number), 2) for number in range(100))


def _refused_among_many() -> Iterator[AnyOperation]:
    """Make calls that are refused about the first, the last and one of those between."""
    free = Slot(200, 0, at("a"), 2)
    for place in (_HUNDRED[0], _HUNDRED[50], _HUNDRED[-1]):
        yield from (replace(free, gfn=place.gfn + offset).create() for offset in (-1, 0, 1))
        yield from (_HUNDRED[20].move(place.gfn + 1), replace(place, pages=1).create())
        yield but(free.delete(), guest_phys_addr=place.gfn * PAGE_SIZE_BYTES)


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios with many slots; the last fills the table of a kernel with few."""
    return (
        Scenario(
            name="table-of-a-hundred",
            why="Both pages of each of a hundred adjacent slots are found, in either order.",
            source="kvm_memslot_move_forward; search_memslots",
            tags=("table", "create", "delete"),
            mappings=(Mapping("a", 200),),
            survey="none",
            operations=(
                *creates(*_HUNDRED),
                *(read(slot.gfn + page) for slot in _HUNDRED for page in (1, 0)),
                *_refused_among_many(),
                *deletes(*_HUNDRED[::2]),
                *(read(slot.gfn + page) for slot in _HUNDRED for page in (0, 1)),
            ),
        ),
        Scenario(
            name="table-beyond-509-slots",
            why="Slots beyond the 509 of older kernels are found, the last created first.",
            source="4fc096a99e01: the limit was 509 on x86 before",
            tags=("table", "create", "slow"),
            mappings=(Mapping("pages", _HOST_PAGES),),
            survey="none",
            operations=tuple(_fill_and_read(min(_BEYOND, features.nr_memslots))),
        ),
        Scenario(
            name="table-of-thousands",
            why="Each of thousands of slots is found, even after random deletions.",
            source="KVM_CAP_NR_MEMSLOTS; kvm_memslot_move_forward, kvm_memslot_delete",
            tags=("table", "create", "delete"),
            mappings=(Mapping("pages", _HOST_PAGES),),
            survey="none",
            guest=_GUEST,
            operations=tuple(_fill_and_empty(min(features.nr_memslots, _QUICK_SLOTS), _DELETED)),
        ),
    )


def slow_scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the scenario that takes long: it fills the whole table and empties it."""
    return (
        Scenario(
            name="table-filled-and-emptied",
            why="Every slot of a full table is found until it is deleted, in random order.",
            source="KVM_CAP_NR_MEMSLOTS; kvm_memslot_move_forward, kvm_memslot_delete",
            tags=("table", "create", "delete", "slow"),
            mappings=(Mapping("pages", _HOST_PAGES),),
            survey="none",
            guest=_GUEST,
            operations=tuple(_fill_and_empty(features.nr_memslots, features.nr_memslots)),
        ),
    )


def _fill_and_read(nr_memslots: int) -> Iterator[AnyOperation]:
    slots = _slots(nr_memslots, random.Random(_SEED))
    yield from slots
    yield from map(_read, reversed(slots))


def _fill_and_empty(nr_memslots: int, most_deleted: int) -> Iterator[AnyOperation]:
    """Fill the table up to ``nr_memslots``, and delete up to ``most_deleted`` slots in rounds."""
    chance = random.Random(_SEED)
    slots = _slots(nr_memslots, chance)
    yield from slots
    more = Slot(nr_memslots, 0x100, at("pages"))  # Refused if the table is full.
    yield more.create()
    yield from map(_read, sorted(slots, key=attrgetter("guest_phys_addr")))
    yield from (more.delete(), read(0x100))
    yield from _move_in_a_full_table(slots[0])
    chance.shuffle(slots)
    # The lowest and the highest are among those that go while most of the others stay.
    for last in (min, max):
        end = last(slots, key=attrgetter("guest_phys_addr"))
        slots.insert(0, slots.pop(slots.index(end)))
    deleted = min(most_deleted, len(slots))
    step = -(-deleted // _ROUNDS)
    for start in range(0, deleted, step):
        leaving, staying = slots[start : start + step], slots[start + step :]
        yield from map(_delete, leaving)
        yield from map(_read, leaving[:_SAMPLES])
        yield from map(_read, staying[:_SAMPLES])
    yield _delete(slots[0])
    yield from map(_read, slots[::128])


def _slots(nr_memslots: int, chance: random.Random) -> list[SetUserMemoryRegion]:
    """Return one-page slots for all ids but the guest's, at adjacent gfns in random order."""
    ids = [slot for slot in range(nr_memslots) if slot != _GUEST.slot]
    gfns = list(range(_FIRST_GFN, _FIRST_GFN + len(ids)))
    chance.shuffle(gfns)
    hvas = [at("pages", page) for page in range(_HOST_PAGES)]
    return [
        SetUserMemoryRegion(slot, gfn * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES, hvas[gfn % _HOST_PAGES])
        for slot, gfn in zip(ids, gfns, strict=True)
    ]


def _read(slot: SetUserMemoryRegion) -> Touch:
    return Touch(slot.guest_phys_addr + 0x100)


def _delete(slot: SetUserMemoryRegion) -> SetUserMemoryRegion:
    return SetUserMemoryRegion(slot.slot)


def _move_in_a_full_table(slot: SetUserMemoryRegion) -> Iterator[AnyOperation]:
    """Yield a move and back; no id is free, and none is needed."""
    yield but(slot, guest_phys_addr=0x200 * PAGE_SIZE_BYTES)
    yield read(0x200)
    yield _read(slot)
    yield slot
    yield read(0x200)
    yield _read(slot)
