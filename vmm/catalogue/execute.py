"""Execution of instructions in a slot: they are fetched from where the slot is now."""

from vmm.catalogue._area import Area
from vmm.catalogue._build import API, HUGE, STALE_SLOT, Slot, at, read, write
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    Execute,
)

_ONE = Slot(1, 0x100, at("a"), pages=2)


def _at(gfn: int) -> Execute:
    return Execute(gfn * PAGE_SIZE_BYTES)


_execute = Area(tags=("execute",), source=API)


SCENARIOS = (
    _execute(
        "execute-then-move-then-execute",
        "After a move the instructions are at the new place, and gone from the old one.",
        _ONE.create(),
        _at(0x101),
        _ONE.move(0x104),
        _at(0x105),
        _at(0x101),
        source=STALE_SLOT,
    ),
    _execute(
        "execute-over-a-move-onto-itself",
        "After a move by one page the guest executes what is at each gpa now.",
        _ONE.create(),
        _at(0x101),
        _ONE.move(0x101),
        _at(0x101),
        _at(0x102),
        _at(0x100),
        source=STALE_SLOT,
    ),
    _execute(
        "execute-only",
        "The guest only executes: nothing was read or written there before.",
        _ONE.create(),
        _at(0x100),
        _ONE.move(0x104),
        _at(0x104),
        _at(0x100),
        _ONE.delete(),
        _at(0x104),
        source=STALE_SLOT,
        survey="none",
    ),
    _execute(
        "execute-in-a-hole",
        "There is nothing to fetch in a hole: the vCPU stops, and then can be used again.",
        _ONE.create(),
        _at(0xFF),
        read(0x100),
        _at(0x102),
        _at(0x100),
        source="api.rst 5, KVM_EXIT_INTERNAL_ERROR",
    ),
    _execute(
        "execute-after-other-memory-came",
        "At a gpa that gets other memory, the guest executes that memory's instructions.",
        _ONE.create(),
        _at(0x100),
        _ONE.delete(),
        Slot(1, 0x100, at("b", 3), pages=2).create(),
        _at(0x100),
        source="kvm_arch_flush_shadow_memslot",
    ),
    _execute(
        "execute-on-transparent-huge-pages",
        "Instructions come from the right 4 KiB of a huge page, before and after a move, and so "
        "does what is read and written beside them.",
        Slot(1, 0x200, at("huge"), pages=514).create(),
        *(_at(0x200 + page) for page in (0, 1, 511, 512, 513)),
        *(read(0x202), write(0x303, 0x5EC0_4D1D), read(0x3FE), _at(0x3FD), read(0x303)),
        Slot(1, 0x200, at("huge"), pages=514).move(0x201),
        *(_at(0x201 + page) for page in (0, 1, 511, 512, 513)),
        _at(0x200),
        source="edd4fa37baa6; disallowed_hugepage_adjust",
        mappings=(HUGE,),
        survey="none",
    ),
)
"""All scenarios about execution."""
