"""MOVE: another guest_phys_addr for an existing slot, and the moves that are refused."""

from vmm.catalogue._build import (
    API,
    HUGE,
    STALE_SLOT,
    A,
    B,
    Slot,
    at,
    but,
    creates,
    read,
    write,
)
from vmm.scenario.features import Features
from vmm.scenario.operations import LOG_DIRTY_PAGES, PAGE_SIZE_BYTES, READONLY, Scenario

_ONE = Slot(1, 0x100, at("a"), pages=2)
_WIDE = Slot(1, 0x104, at("a"), pages=4)
_TARGET = Slot(2, 0x110, at("b"), pages=4)
_ROW = tuple(Slot(number, 0x100 + 2 * number, at("a", number)) for number in range(1, 5))


def _alone(name: str, why: str, slot: Slot, *gfns: int, source: str = API) -> Scenario:
    return Scenario(
        name=name,
        why=why,
        source=source,
        tags=("move",),
        mappings=(A,),
        operations=(slot.create(), *(slot.move(gfn) for gfn in gfns)),
    )


_PLACES = (
    _alone("move-up", "The old gpa is MMIO at once, the new one memory.", _ONE, 0x108),
    _alone(
        "move-down",
        "A vCPU that has used the slot no longer reaches memory at the old gpa.",
        _ONE,
        0xF0,
        source=STALE_SLOT,
    ),
    _alone("move-to-gpa-0-and-away", "Gfn 0 can be moved to, and left.", _ONE, 0, 0x100,
           source="efbeec7098ee"),
    _alone("move-one-page-by-one", "A slot can move to the gfn next to it.",
           Slot(1, 0x100, at("a")), 0x101, 0x100, 0xFF),
    _alone("move-up-over-itself", "A slot can move up by less than its own size.",
           _WIDE, 0x105, 0x107),
    _alone("move-down-over-itself", "A slot can move down by less than its own size.",
           _WIDE, 0x103, 0x101),
    _alone("move-again-and-again-and-back", "A slot leaves nothing behind at any gpa it had.",
           _ONE, 0x108, 0x102, 0x109, 0x103, 0x100, source=STALE_SLOT),
)  # fmt: skip


def _past(name: str, why: str, mover: int, *gfns: int) -> Scenario:
    return Scenario(
        name=name,
        why=why,
        source="kvm_memslot_move_backward, kvm_memslot_move_forward",
        tags=("move", "array"),
        mappings=(A,),
        operations=(
            *creates(*_ROW),
            *(_ROW[mover].move(gfn) for gfn in gfns),
            _ROW[2].delete(),  # The id must still lead to its slot after another has passed it.
        ),
    )


_NEIGHBOURS = (
    _past(
        "move-past-one-neighbour",
        "The slot passes one entry of the array, upward and downward.",
        1,
        0x107,
        0x103,
    ),
    _past(
        "move-past-all",
        "The lowest slot becomes the highest, and the lowest again.",
        0,
        0x10A,
        0x100,
    ),
    _past(
        "move-between-two",
        "A slot moves into the gap between two others, which it fills exactly.",
        0,
        0x105,
        0x107,
    ),
)


_REFUSED = (
    Scenario(
        name="move-onto-another",
        why="A move up or down that overlaps another slot, by one page or all, is EEXIST; the next "
        "one works.",
        source="api.rst 4.35; __kvm_set_memory_region",
        tags=("move", "errno", "overlap"),
        mappings=(A, B),
        operations=(
            *creates(_ONE, _TARGET),
            *(_ONE.move(gfn) for gfn in (0x10F, 0x111, 0x113)),
            _ONE.move(0x108),
            *(_TARGET.move(gfn) for gfn in (0x109, 0x107, 0x105)),
            _TARGET.move(0x104),
            *(_ONE.move(gfn) for gfn in (0x10A, 0x103, 0x108)),
            *(_TARGET.move(gfn) for gfn in (0x102, 0x106, 0x104)),
        ),
    ),
    Scenario(
        name="move-around-another",
        why="A move to gfns that include a smaller slot is EEXIST.",
        source=API,
        tags=("move", "errno", "overlap"),
        mappings=(A, B),
        operations=(*creates(_WIDE, Slot(2, 0x10A, at("b"))), _WIDE.move(0x109)),
    ),
    Scenario(
        name="move-onto-the-guest",
        why="A move onto the running guest's own slot is EEXIST, as onto any other.",
        source=API,
        tags=("move", "errno", "overlap"),
        mappings=(A,),
        operations=(_ONE.create(), _ONE.move(0xFFFFF), _ONE.move(0xFFFEF), _ONE.move(0xFFFEE)),
    ),
    Scenario(
        name="move-next-to-another",
        why="The pages just below and just above another slot are free.",
        source=API,
        tags=("move", "adjacent"),
        mappings=(A, B),
        operations=(*creates(_ONE, _TARGET), _ONE.move(0x10E), _ONE.move(0x114)),
    ),
    Scenario(
        name="move-to-where-a-deletion-made-room",
        why="A move that was refused succeeds once the slot in its way is deleted.",
        source=API,
        tags=("move", "delete", "overlap"),
        mappings=(A, B),
        operations=(
            *creates(_ONE, _TARGET), _ONE.move(0x110), _TARGET.delete(), _ONE.move(0x110),
        ),
    ),
)  # fmt: skip

_LEFT, _RIGHT = Slot(1, 0x100, at("a")), Slot(2, 0x101, at("b"))

_CONTENT = (
    Scenario(
        name="move-carries-content",
        why="Content belongs to the host mapping, and moves with it.",
        source=API,
        tags=("move", "content"),
        mappings=(A,),
        operations=(_ONE.create(), write(0x101, 0xC0FFEE11), _ONE.move(0x108), read(0x109)),
    ),
    Scenario(
        name="move-two-slots-into-each-others-place",
        why="Two slots swap by way of a third place.",
        source=STALE_SLOT,
        tags=("move",),
        mappings=(A, B),
        operations=(
            *creates(_LEFT, _RIGHT), _LEFT.move(0x108), _RIGHT.move(0x100), _LEFT.move(0x101),
        ),
    ),
    Scenario(
        name="move-one-of-two-on-one-page",
        why="If two slots share host pages and one moves, the other stays where it is.",
        source=API,
        tags=("move", "hva"),
        mappings=(A,),
        operations=(*creates(_ONE, Slot(2, 0x110, at("a"), pages=2)), _ONE.move(0x108)),
    ),
    Scenario(
        name="move-then-create-at-the-old-place",
        why="The old place is free for another slot, even with other memory.",
        source=STALE_SLOT,
        tags=("move", "create"),
        mappings=(A, B),
        operations=(_ONE.create(), _ONE.move(0x108), Slot(2, 0x100, at("b"), pages=2).create()),
    ),
    Scenario(
        name="move-then-delete-then-create",
        why="A slot that moved is deleted where it is, and created again where it was first.",
        source=STALE_SLOT,
        tags=("move", "delete", "create"),
        mappings=(A,),
        operations=(_ONE.create(), _ONE.move(0x108), _ONE.delete(), _ONE.create()),
    ),
    Scenario(
        name="move-out-of-huge-page-alignment",
        why="No huge page stays mapped when a move ends the common alignment of gpa and hva.",
        source="edd4fa37baa6",
        tags=("move", "huge"),
        mappings=(HUGE,),
        operations=(
            Slot(1, 0x200, at("huge"), pages=513).create(),
            Slot(1, 0x200, at("huge"), pages=513).move(0x201),
        ),
    ),
    Scenario(
        name="move-into-huge-page-alignment",
        why="A slot that a move aligns with its huge page still reaches only its own pages.",
        source="edd4fa37baa6",
        tags=("move", "huge"),
        mappings=(HUGE,),
        operations=(
            Slot(1, 0x3FF, at("huge", 512), pages=3).create(),
            Slot(1, 0x3FF, at("huge", 512), pages=3).move(0x400),
        ),
    ),
    Scenario(
        name="move-by-whole-huge-pages",
        why="A move that keeps the common alignment of gpa and hva takes every page along, onto "
        "itself, too.",
        source="edd4fa37baa6",
        tags=("move", "huge"),
        mappings=(HUGE,),
        operations=(
            Slot(1, 0x200, at("huge"), pages=513).create(),
            Slot(1, 0x200, at("huge"), pages=513).move(0x800),
            Slot(1, 0x200, at("huge"), pages=513).move(0x600),
            Slot(1, 0x200, at("huge"), pages=513).move(0x400),
            Slot(1, 0, 0).delete(),
            Slot(2, 0x400, at("huge"), pages=512).create(),
            Slot(2, 0x400, at("huge"), pages=512).move(0x800),
        ),
    ),
    Scenario(
        name="move-readonly",
        why="A READONLY slot can move, is READONLY at its new place, and gone from the old.",
        source=API,
        tags=("move", "readonly"),
        mappings=(A,),
        needs=("readonly_mem",),
        operations=(
            Slot(1, 0x100, at("a"), 2, READONLY).create(),
            Slot(1, 0x100, at("a"), 2, READONLY).move(0x101),
            Slot(1, 0x100, at("a"), 2, READONLY).move(0x108),
        ),
    ),
    Scenario(
        name="move-with-flags",
        why="LOG_DIRTY_PAGES may be set, and cleared, by the same call that moves the slot.",
        source=API,
        tags=("move", "flags"),
        mappings=(A,),
        operations=(_ONE.create(), _ONE.move(0x108, LOG_DIRTY_PAGES), _ONE.move(0x100)),
    ),
)  # fmt: skip


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return all scenarios of moves; those at the limit depend on the kernel's last gfn."""
    return (*_PLACES, *_NEIGHBOURS, *_REFUSED, *_CONTENT, *_limits(features.last_gfn))


def _limits(last_gfn: int) -> tuple[Scenario, ...]:
    highest = but(_ONE.create(), guest_phys_addr=(1 << 64) - 3 * PAGE_SIZE_BYTES)
    return (
        Scenario(
            name="move-beyond-the-last-gfn",
            why="If a move fails after the slot was invalidated, the kernel puts the slot back.",
            source="kvm_arch_prepare_memory_region",
            tags=("move", "errno", "limit"),
            mappings=(A, B),
            operations=(
                *creates(_ONE, _TARGET),
                _ONE.move(last_gfn + 1),
                # One page within, one beyond.
                _ONE.move(last_gfn),
                highest,
                _ONE.move(0x108),
            ),
        ),
        Scenario(
            name="move-to-the-last-gfn-and-back",
            why="A slot can move to the last legal gfn, and back.",
            source="kvm_mmu_max_gfn",
            tags=("move", "limit"),
            mappings=(A,),
            operations=(_ONE.create(), _ONE.move(last_gfn - 1), _ONE.move(0x100)),
        ),
        Scenario(
            name="move-with-flags-beyond-the-last-gfn",
            why="A refused move sets no flags either: the slot does not begin to log.",
            source="kvm_arch_prepare_memory_region",
            tags=("move", "errno", "limit", "dirty"),
            mappings=(A,),
            operations=(_ONE.create(), _ONE.move(last_gfn + 1, LOG_DIRTY_PAGES), _ONE.log()),
        ),
    )
