"""Calls that change nothing, or only flags, and the two forms of the call."""

from collections.abc import Iterator
from dataclasses import replace

from vmm.catalogue._build import API, A, B, Slot, at, creates, read, second_form, write
from vmm.scenario.operations import LOG_DIRTY_PAGES, READONLY, AnyOperation, Scenario

_ONE = Slot(1, 0x100, at("a"), pages=2)
_TWO = Slot(2, 0x102, at("b"), pages=2)

_KINDS = (0, LOG_DIRTY_PAGES, READONLY, READONLY | LOG_DIRTY_PAGES)


def _set_twice(slot: Slot) -> Iterator[AnyOperation]:
    """Make each kind of change to a slot, and then ask for the same again."""
    moved = replace(slot, gfn=slot.gfn + 8)
    other = replace(moved, flags=slot.flags ^ LOG_DIRTY_PAGES)
    for each in (slot, moved, other):
        yield from (each.create(), each.create())
    yield other.delete()


def _logged_and_not(slot: Slot) -> Iterator[AnyOperation]:
    """Turn logging of a slot on and off again and again, by a move and in place."""
    yield slot.create()
    for number in range(3):
        for gfn in (slot.gfn + 8, slot.gfn):
            yield from (slot.move(gfn, slot.flags | LOG_DIRTY_PAGES), slot.log())
            if slot.hva:
                yield from (write(gfn, number), slot.log())
            yield from (slot.move(gfn), slot.log())
            yield from (slot.move(gfn, slot.flags | LOG_DIRTY_PAGES), slot.log())
            yield from (slot.move(slot.gfn), slot.log())
    yield slot.delete()


_IN_PLACE = (
    Scenario(
        name="nop-same-values",
        why="Setting the values that a slot already has changes nothing, however often.",
        source=API,
        tags=("nop",),
        mappings=(A, B),
        operations=(*creates(_ONE, _TWO), _ONE.create(), _ONE.create(), _TWO.create()),
    ),
    Scenario(
        name="nop-of-every-kind-of-slot",
        why="Whatever the flags of a slot are, the same values again change nothing: after its "
        "creation, a move and a change of its flags.",
        source=API,
        tags=("nop", "move", "flags", "readonly"),
        mappings=(A,),
        needs=("readonly_mem",),
        operations=tuple(
            call for flags in _KINDS for call in _set_twice(replace(_ONE, flags=flags))
        ),
    ),
    Scenario(
        name="nop-after-a-move",
        why="After a move the old values are a move back, and the new ones change nothing.",
        source=API,
        tags=("nop", "move"),
        mappings=(A,),
        operations=(_ONE.create(), _ONE.move(0x108), _ONE.move(0x108), _ONE.create()),
    ),
    Scenario(
        name="flags-on-and-off-again",
        why="A slot survives any number of changes of its flags.",
        source=API,
        tags=("flags",),
        mappings=(A,),
        operations=(
            _ONE.create(),
            *(_ONE.change(flags) for flags in (LOG_DIRTY_PAGES, 0, LOG_DIRTY_PAGES, 0)),
        ),
    ),
    Scenario(
        name="flags-keep-content",
        why="Everything that the guest wrote before, during and after logging is kept.",
        source=API,
        tags=("flags", "content"),
        mappings=(A,),
        operations=(
            _ONE.create(),
            write(0x100, 0x11111111),
            _ONE.change(LOG_DIRTY_PAGES),
            read(0x100),
            write(0x101, 0x22222222),
            _ONE.change(0),
            read(0x100),
            read(0x101),
            write(0x101, 0x33333333),
            read(0x101),
        ),
    ),
    Scenario(
        name="flags-log-on-a-readonly-slot",
        why="LOG_DIRTY_PAGES may change on a READONLY slot, and READONLY holds.",
        source=API,
        tags=("flags", "readonly"),
        mappings=(A,),
        needs=("readonly_mem",),
        operations=(
            Slot(1, 0x100, at("a"), 2, READONLY).create(),
            _ONE.change(READONLY | LOG_DIRTY_PAGES),
            _ONE.change(READONLY),
        ),
    ),
    Scenario(
        name="flags-log-with-a-move",
        why="A move turns logging on and off, of a READONLY slot, too, and of one at address 0; so "
        "does a change in place, as often as one likes.",
        source=API,
        tags=("flags", "readonly", "move", "dirty"),
        mappings=(A,),
        needs=("readonly_mem",),
        survey="none",
        operations=tuple(
            call
            for slot in (_ONE, replace(_ONE, flags=READONLY), replace(_ONE, hva=0))
            for call in _logged_and_not(slot)
        ),
    ),
)

_FORMS = (
    Scenario(
        name="second-form-on-a-slot-of-the-first",
        why="Slots created by either form can be set again, moved and deleted by the other.",
        source="api.rst 4.140 KVM_SET_USER_MEMORY_REGION2",
        tags=("second-form", "nop", "move", "delete"),
        mappings=(A, B),
        needs=("user_memory2",),
        operations=(
            _ONE.create(),
            second_form(_ONE.create()),
            second_form(_ONE.move(0x104)),
            _ONE.move(0x104),
            second_form(_TWO.create()),
            _TWO.delete(),
            second_form(_ONE.delete()),
        ),
    ),
    Scenario(
        name="second-form-as-the-capability-says",
        why="The second form is a call that KVM_CAP_USER_MEMORY2 says there is; else it is ENOTTY.",
        source="api.rst 4.140 KVM_SET_USER_MEMORY_REGION2",
        tags=("second-form", "errno"),
        mappings=(A,),
        operations=(
            second_form(_ONE.create()),
            _ONE.create(),
            second_form(_ONE.delete()),
        ),
    ),
    Scenario(
        name="second-form-logs",
        why="The second form turns logging on and off, at creation, by itself and with a move.",
        source="api.rst 4.140 KVM_SET_USER_MEMORY_REGION2",
        tags=("second-form", "dirty"),
        mappings=(A,),
        needs=("user_memory2",),
        survey="none",
        operations=(
            second_form(_ONE.change(LOG_DIRTY_PAGES)),
            write(0x100, 1),
            _ONE.log(),
            second_form(_ONE.change(0)),
            _ONE.log(),
            second_form(_ONE.change(LOG_DIRTY_PAGES)),
            write(0x101, 3),
            _ONE.log(),
            second_form(_ONE.move(0x108, LOG_DIRTY_PAGES)),
            write(0x108, 2),
            _ONE.log(),
            second_form(_ONE.move(0x100, 0)),
            _ONE.log(),
        ),
    ),
    Scenario(
        name="second-form-refusals",
        why="The second form refuses what the first one refuses, and no READONLY slot.",
        source="api.rst 4.140 KVM_SET_USER_MEMORY_REGION2",
        tags=("second-form", "errno"),
        mappings=(A, B),
        needs=("user_memory2",),
        operations=(
            _ONE.create(),
            second_form(Slot(2, 0x101, at("b")).create()),
            second_form(Slot(1, 0x100, at("a"), pages=1).create()),
            second_form(_TWO.delete()),
            # Without the flag GUEST_MEMFD the offset means nothing.
            second_form(_TWO.create(), guest_memfd_offset=1),
            second_form(Slot(3, 0x110, at("a"), 2, READONLY).create()),
        ),
    ),
)

SCENARIOS = (*_IN_PLACE, *_FORMS)
"""All nops, changes of flags, and calls of the second form."""
