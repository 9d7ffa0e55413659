"""Slot ids: the first, those around the limit of old kernels, the last, and one left unused."""

from collections.abc import Iterator

from vmm.catalogue._build import API, A, B, Slot, at, creates, deletes, read
from vmm.scenario.features import Features
from vmm.scenario.operations import AnyOperation, Guest, Mapping, Scenario


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios on particular ids; the last id is the kernel's own."""
    last = features.nr_memslots - 1
    return (*_single(last), *_several(last), *_unlike_gfns())


def _single(last: int) -> tuple[Scenario, ...]:
    return (
        _alone(
            "slot-id-0", "Slot id 0 is an id like any other, and does not mark an absent slot.", 0
        ),
        _alone("slot-id-508", "The last user slot of kernels that had 509 of them.", 508),
        _alone("slot-id-509", "The first id that newer kernels added, where they did.", 509),
        _alone("slot-id-last", "The last id that KVM_CAP_NR_MEMSLOTS announces.", last),
    )


def _several(last: int) -> tuple[Scenario, ...]:
    return (
        Scenario(
            name="slot-ids-of-all-kinds",
            why="Ids far apart do not affect each other, in any order of creation and deletion.",
            source="KVM_CAP_NR_MEMSLOTS; id_to_index",
            tags=("ids", "create", "delete"),
            mappings=(A,),
            operations=(*creates(*_spread(last)), *deletes(*_spread(last))),
        ),
        Scenario(
            name="slot-ids-of-every-bit",
            why="At any id, one used before too, a slot of two pages reaches both of them, and a "
            "move takes both along.",
            source="KVM_CAP_NR_MEMSLOTS; id_to_memslot",
            tags=("ids", "create", "move", "delete"),
            mappings=(Mapping("pages", 2 * last.bit_length()),),
            survey="none",
            operations=tuple(_at_every_bit(last)),
        ),
        Scenario(
            name="slot-ids-alike",
            why="Slots whose ids differ in only one bit are two slots: neither can be created at, "
            "or moved to, the other's gfns.",
            source=f"{API}; kvm_check_memslot_overlap",
            tags=("ids", "create", "move", "overlap"),
            mappings=(A, B),
            survey="none",
            operations=tuple(_alike(last)),
        ),
        Scenario(
            name="slot-ids-whose-place-is-taken",
            why="Whatever the id of a slot, nothing can be created over it, or moved onto it.",
            source=f"{API}; kvm_check_memslot_overlap",
            tags=("ids", "create", "move", "overlap"),
            mappings=(A, B),
            survey="none",
            operations=tuple(_taken(last)),
        ),
        Scenario(
            name="slot-ids-one-after-another",
            why="Whichever id was deleted last, a slot can be created with any; deleting one of "
            "two leaves the other.",
            source="KVM_CAP_NR_MEMSLOTS; id_to_index",
            tags=("ids", "create", "delete"),
            mappings=(A, B),
            survey="none",
            operations=tuple(_one_after_another(last)),
        ),
    )


def _unlike_gfns() -> tuple[Scenario, ...]:
    """Return the scenarios in which ids and gfns are unrelated."""
    return (
        Scenario(
            name="slot-ids-against-the-order-of-gfns",
            why="The order of ids and the order of gfns are independent.",
            source="id_to_index",
            tags=("ids", "create", "move"),
            mappings=(A,),
            operations=(
                *creates(*(Slot(9 - n, 0x100 + 2 * n, at("a", n)) for n in range(4))),
                Slot(9, 0x100, at("a", 0)).move(0x107),
                Slot(6, 0x106, at("a", 3)).move(0x100),
            ),
        ),
        Scenario(
            name="slot-id-of-the-guest-elsewhere",
            why="Id and gpa of the guest's usual slot are free if the guest lies elsewhere.",
            source=API,
            tags=("ids",),
            mappings=(A, B),
            guest=Guest(slot=0, gpa=0x20000),
            operations=creates(
                Slot(400, 0xFFFF0, at("a"), pages=2), Slot(1, 0x30, at("b"), pages=2)
            ),
        ),
    )


def _alone(name: str, why: str, slot: int) -> Scenario:
    mine = Slot(slot, 0x100, at("a"), pages=2)
    return Scenario(
        name=name,
        why=why,
        source="KVM_CAP_NR_MEMSLOTS",
        tags=("ids", "create", "move", "delete"),
        mappings=(A, B),
        operations=(
            # Another id that must not be mistaken for it.
            Slot(7, 0x106, at("b")).create(),
            mine.create(),
            mine.move(0x103),
            mine.delete(),
            mine.delete(),
        ),
    )


def _at_every_bit(last: int) -> Iterator[AnyOperation]:
    slots = [
        Slot(1 << bit, 0x100 + 4 * bit, at("pages", 2 * bit), pages=2)
        for bit in range(last.bit_length())
    ]
    pages = [slot.gfn + page for slot in slots for page in range(4)]
    yield from creates(*slots)
    yield from map(read, pages)
    yield from (slot.move(slot.gfn + 2) for slot in reversed(slots))
    yield from map(read, pages)
    yield from deletes(*slots)
    yield from map(read, pages)
    yield from creates(*reversed(slots))
    yield from map(read, pages)


def _alike(last: int) -> Iterator[AnyOperation]:
    one = Slot(3, 0x100, at("a"), pages=4)
    yield from (one.create(), read(0x102))
    for bit in range(2, last.bit_length()):
        other = Slot(3 | 1 << bit, 0x102, at("b"), pages=4)
        if other.slot <= last:
            yield from (other.create(), other.move(0x110), other.move(0x102), one.move(0x112))
            yield from (read(0x102), read(0x112), other.delete())


def _taken(last: int) -> Iterator[AnyOperation]:
    mover = Slot(6, 0x110, at("b"), pages=2)
    yield from (mover.move(0x114), mover.create())  # One that was moved before.
    for slot in (*_spread(last), Slot(255, 0, 0), Slot(256, 0, 0)):
        taken = Slot(slot.slot, 0x100, at("a"), pages=3)
        yield taken.create()
        yield from (Slot(5, first, at("b", 2), pages=2).create() for first in (0xFF, 0x100, 0x102))
        yield Slot(5, 0, 0).delete()  # Nothing is left of what was refused.
        yield from (mover.move(first) for first in (0xFF, 0x101, 0x102))
        yield from (read(0xFF), read(0x102), read(0x103), taken.delete())
        # Refused where another slot is, it can be made elsewhere.
        yield from (taken.move(0x10F), taken.create(), taken.move(0x111), taken.delete())


def _one_after_another(last: int) -> Iterator[AnyOperation]:
    ids = [slot.slot for slot in _spread(last)]
    for first in ids:
        for second in ids:
            one, two = Slot(first, 0x100, at("a")), Slot(second, 0x101, at("b"))
            begun = (
                (one.delete(), two.create()) if first == second else (two.create(), one.delete())
            )
            yield from (one.create(), *begun, read(0x100), read(0x101), two.delete())


def _spread(last: int) -> tuple[Slot, ...]:
    return tuple(
        Slot(slot, 0x100 + index, at("a", index))
        for index, slot in enumerate((507, 0, last, 1, 508))
        if slot <= last
    )
