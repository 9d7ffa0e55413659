"""Many slots: a hundred of several pages, and the whole table, filled, touched and emptied."""

import random
from collections.abc import Iterator

from vmm.catalogue._build import Slot, at, creates, deletes, read
from vmm.scenario.features import Features
from vmm.scenario.operations import AnyOperation, Guest, Mapping, Scenario

_FIRST_GFN = 0x1000
_GUEST = Guest()

# A prime, so that no two slots whose ids or gfns differ by a power of two show the same page.
_HOST_PAGES = 4093

_SEED = 2020
_ROUNDS = 8
_BEYOND = 600
_SAMPLES = 16


_HUNDRED = tuple(Slot(number, 0x100 + 2 * number, at("a", 2 * number), 2) for number in range(100))


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return what needs many slots; the last scenario uses all that the kernel has."""
    return (
        Scenario(
            name="table-of-a-hundred",
            why="Both pages of each of a hundred slots are found, side by side, in either order.",
            source="kvm_memslot_move_forward; search_memslots",
            tags=("table", "create", "delete"),
            mappings=(Mapping("a", 200),),
            survey="none",
            operations=(
                *creates(*_HUNDRED),
                *(read(slot.gfn + page) for slot in _HUNDRED for page in (1, 0)),
                *deletes(*_HUNDRED[::2]),
                *(read(slot.gfn + page) for slot in _HUNDRED for page in (0, 1)),
            ),
        ),
        Scenario(
            name="table-beyond-509-slots",
            why="More slots than the 509 of older kernels are found, the last created first.",
            source="4fc096a99e01: the limit was 509 on x86 before",
            tags=("table", "create"),
            mappings=(Mapping("pages", _HOST_PAGES),),
            survey="none",
            operations=tuple(_fill_and_read(min(_BEYOND, features.nr_memslots))),
        ),
        Scenario(
            name="table-filled-and-emptied",
            why="Every slot of a full table is found, and finding outlasts random deletions.",
            source="KVM_CAP_NR_MEMSLOTS; kvm_memslot_move_forward, kvm_memslot_delete",
            tags=("table", "create", "delete"),
            mappings=(Mapping("pages", _HOST_PAGES),),
            survey="none",
            guest=_GUEST,
            operations=tuple(_fill_and_empty(features.nr_memslots)),
        ),
    )


def _fill_and_read(nr_memslots: int) -> Iterator[AnyOperation]:
    slots = _slots(nr_memslots, random.Random(_SEED))
    yield from creates(*slots)
    yield from (read(slot.gfn) for slot in reversed(slots))


def _fill_and_empty(nr_memslots: int) -> Iterator[AnyOperation]:
    chance = random.Random(_SEED)
    slots = _slots(nr_memslots, chance)
    yield from (slot.create() for slot in slots)
    yield Slot(nr_memslots, 0x100, at("pages")).create()
    yield from (read(slot.gfn) for slot in sorted(slots, key=lambda slot: slot.gfn))
    yield from _move_in_a_full_table(slots[0])
    chance.shuffle(slots)
    share = -(-len(slots) // _ROUNDS)
    for start in range(0, len(slots), share):
        leaving, staying = slots[start : start + share], slots[start + share :]
        yield from (slot.delete() for slot in leaving)
        yield from (read(slot.gfn) for slot in leaving[:_SAMPLES])
        yield from (read(slot.gfn) for slot in staying[:_SAMPLES])
    yield slots[0].delete()
    yield from (read(slot.gfn) for slot in slots[::128])


def _slots(nr_memslots: int, chance: random.Random) -> list[Slot]:
    """Return one-page slots for all ids but the guest's, with gfns side by side, in no order."""
    ids = [slot for slot in range(nr_memslots) if slot != _GUEST.slot]
    gfns = list(range(_FIRST_GFN, _FIRST_GFN + len(ids)))
    chance.shuffle(gfns)
    return [
        Slot(slot, gfn, at("pages", gfn % _HOST_PAGES)) for slot, gfn in zip(ids, gfns, strict=True)
    ]


def _move_in_a_full_table(slot: Slot) -> Iterator[AnyOperation]:
    """A move needs no free id: there is none."""
    yield slot.move(0x200)
    yield read(0x200)
    yield read(slot.gfn)
    yield slot.move(slot.gfn)
    yield read(0x200)
    yield read(slot.gfn)
