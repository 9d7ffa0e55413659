"""Deletion by memory_size 0: what it checks, what it ignores, and what may follow it."""

from vmm.catalogue._area import Area
from vmm.catalogue._build import (
    API,
    NOWHERE,
    A,
    B,
    Slot,
    at,
    but,
    creates,
    deletes,
    read,
    write,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    Scenario,
    SetUserMemoryRegion,
)

_ONE = Slot(1, 0x100, at("a"), pages=2)
_TWO = Slot(2, 0x104, at("b"), pages=2)
_ROW = tuple(Slot(number, 0x100 + 2 * number, at("a", number)) for number in range(1, 6))


def _as_it_was(slot: Slot) -> SetUserMemoryRegion:
    return but(slot.create(), memory_size=0)


def _ignoring(
    name: str, why: str, *deletions: SetUserMemoryRegion, needs: tuple[str, ...] = ()
) -> Scenario:
    """Delete the slot in several ways, and create it again in between."""
    return Scenario(
        name=name,
        why=why,
        source="e0135a104c52: deletion was refused for its userspace_addr",
        tags=("delete",),
        mappings=(A, B, NOWHERE),
        needs=needs,
        operations=(
            _TWO.create(),
            *(operation for deletion in deletions for operation in (_ONE.create(), deletion)),
        ),
    )


_SHAPES = (
    _ignoring(
        "delete-whatever-the-gpa",
        "guest_phys_addr is ignored: 0, the slot's own, another slot's, or beyond the last gfn.",
        _ONE.delete(),
        _as_it_was(_ONE),
        but(_as_it_was(_ONE), guest_phys_addr=_TWO.gfn * PAGE_SIZE_BYTES),
        but(_as_it_was(_ONE), guest_phys_addr=(1 << 64) - PAGE_SIZE_BYTES),
    ),
    _ignoring(
        "delete-whatever-the-hva",
        "userspace_addr is ignored: 0, the slot's own, another slot's, or one without memory.",
        _ONE.delete(),
        but(_ONE.delete(), userspace_addr=at("a")),
        but(_ONE.delete(), userspace_addr=at("b")),
        but(_ONE.delete(), userspace_addr=at("nowhere")),
    ),
    _ignoring(
        "delete-whatever-the-flags",
        "Valid flags are ignored, even READONLY, which may not change on a slot that stays.",
        but(_ONE.delete(), flags=LOG_DIRTY_PAGES),
        but(_ONE.delete(), flags=READONLY),
        but(_ONE.delete(), flags=LOG_DIRTY_PAGES | READONLY),
        needs=("readonly_mem",),
    ),
)

_ABSENT = (
    Scenario(
        name="delete-absent",
        why="Deleting an absent slot is EINVAL, in an empty VM and between live slots.",
        source="f0736cf0550b",
        tags=("delete", "errno"),
        mappings=(A, B),
        operations=(_ONE.delete(), *creates(_ONE, _TWO), Slot(3, 0, 0).delete()),
    ),
    Scenario(
        name="delete-twice",
        why="The second deletion finds the slot absent, whatever its entry still holds.",
        source="f0736cf0550b",
        tags=("delete", "errno"),
        mappings=(A, B),
        operations=(*creates(_ONE, _TWO), _ONE.delete(), _ONE.delete(), _as_it_was(_ONE)),
    ),
)


_order = Area(
    tags=("delete", "array"),
    source="0774a964ef56: a lookup began beyond the last entry",
    before=creates(*_ROW),
)


_ORDERS = (
    _order(
        "delete-from-the-highest-gfn-down",
        "The first entry of the array is deleted again and again, until none is left.",
        *deletes(*reversed(_ROW)),
    ),
    _order(
        "delete-from-the-lowest-gfn-up",
        "The last entry of the array is deleted again and again; a lookup that last ended there "
        "still works.",
        *deletes(*_ROW),
    ),
    _order(
        "delete-the-middle",
        "Deleting a slot leaves those on both sides as they are.",
        _ROW[2].delete(),
    ),
    _order(
        "delete-the-slot-looked-up-last",
        "The slot that the vCPU looked up last is deleted.",
        read(_ROW[0].gfn),
        _ROW[0].delete(),
        read(_ROW[0].gfn),
        read(_ROW[1].gfn),
    ),
    _order(
        "delete-then-create-at-gpa-0",
        "A slot at gfn 0 sorts before the unused entries, and is not lost among them.",
        *deletes(*_ROW[:3]),
        Slot(7, 0, at("b"), pages=2).create(),
    ),
)

_AFTERWARDS = (
    Scenario(
        name="delete-at-gpa-0",
        why="An entry whose gpa is 0 is in use until it is deleted.",
        source="efbeec7098ee",
        tags=("delete",),
        mappings=(A, B),
        operations=(*creates(Slot(1, 0, at("a")), Slot(2, 1, at("b"))), Slot(1, 0, 0).delete()),
    ),
    Scenario(
        name="delete-one-of-two-on-one-page",
        why="A host page of two slots is still reached through the one that is left.",
        source=API,
        tags=("delete", "hva"),
        mappings=(A,),
        operations=(*creates(Slot(1, 0x100, at("a")), Slot(2, 0x110, at("a"))), _ONE.delete()),
    ),
    Scenario(
        name="delete-then-create-there-with-other-memory",
        why="No translation of a slot outlives it: other memory at its gpa is seen at once.",
        source="kvm_arch_flush_shadow_memslot",
        tags=("delete", "create"),
        mappings=(A, B),
        operations=(_ONE.create(), _ONE.delete(), Slot(1, 0x100, at("b", 3), pages=2).create()),
    ),
    Scenario(
        name="delete-then-reuse-the-id-elsewhere",
        why="A new slot keeps neither place nor size nor memory of the old one with its id.",
        source=API,
        tags=("delete", "create"),
        mappings=(A, B),
        operations=(_ONE.create(), _ONE.delete(), Slot(1, 0x106, at("b", 1), pages=3).create()),
    ),
    Scenario(
        name="delete-then-create-larger-and-smaller",
        why="The size of a slot can change by deletion and creation.",
        source=API,
        tags=("delete", "create", "size"),
        mappings=(A,),
        operations=(
            _ONE.create(),
            _ONE.delete(),
            Slot(1, 0x100, at("a"), pages=4).create(),
            _ONE.delete(),
            Slot(1, 0x100, at("a")).create(),
        ),
    ),
    Scenario(
        name="delete-leaves-content-to-the-mapping",
        why="What the guest wrote shows again where the same memory is mapped next.",
        source=API,
        tags=("delete", "create", "content"),
        mappings=(A,),
        operations=(
            _ONE.create(),
            write(0x101, 0x600DCAFE),
            _ONE.delete(),
            read(0x101),
            Slot(2, 0x110, at("a", 1)).create(),
            read(0x110),
        ),
    ),
)

SCENARIOS = (*_SHAPES, *_ABSENT, *_ORDERS, *_AFTERWARDS)
"""All scenarios of deletion."""
