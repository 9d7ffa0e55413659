"""VMs without any slot, at first and in the end: the guest's own slot does not exist."""

from collections.abc import Iterator

from vmm.catalogue._build import Slot, at
from vmm.catalogue._starts import CODE, TABLES, USUAL, accesses, programs, start_scenario
from vmm.scenario.operations import (
    NO_SLOT,
    PAGE_SIZE_BYTES,
    AnyOperation,
    Execute,
    Guest,
    NewVm,
    Scenario,
    Start,
)

_NOWHERE = Guest(slot=NO_SLOT)
_RESET = 0xFFFF_FFF0
_ONE = Slot(1, 0x100, at("a"), pages=2)
_ZERO = Slot(0, 0x102, at("b"), pages=1)
_TWO = Slot(2, 0xFFFFE, at("b"), pages=2)


def _execute(gfn: int, vcpu: int = 0) -> Execute:
    return Execute(gfn * PAGE_SIZE_BYTES, vcpu)


def _bare(
    name: str, why: str, *operations: AnyOperation, vcpus: int = 1, source: str = ""
) -> Scenario:
    """Return a scenario whose only slots are those that its operations create."""
    return start_scenario(
        f"without-slots-{name}",
        why,
        *operations,
        source=source or "api.rst 5, KVM_EXIT_INTERNAL_ERROR; 0774a964ef56",
        vcpus=vcpus,
        guest=_NOWHERE,
    )


def _emptied() -> Iterator[AnyOperation]:
    """Yield the deletion of four slots, after each of which code in all four is executed."""
    for slot in reversed(range(4)):
        yield Slot(slot, 0x100 + 2 * slot, at("a", slot)).delete()
        yield from (_execute(0x100 + 2 * other) for other in range(4))


SCENARIOS = (
    _bare(
        "at-the-reset-vector",
        "Without any slot a vCPU stops at the reset vector, and at any other address.",
        Start(_RESET),
        Start(_RESET),
        _execute(0),
        _execute(0x100),
        Start(0x800, 0),
        Start(0x800, 0x1000),
        Start(_RESET),
        _ONE.log(),
    ),
    _bare(
        "until-the-first",
        "A vCPU that has run without slots runs in the first one, and stops again after the last "
        "is deleted.",
        _execute(0x100),
        _ONE.create(),
        _execute(0x100),
        _execute(0x101),
        _execute(0x102),
        _ONE.delete(),
        _execute(0x100),
        _execute(0x101),
        _TWO.create(),
        _execute(0xFFFFE),
        Start(_RESET & -PAGE_SIZE_BYTES | 0x800),
        _execute(0x100),
        _TWO.move(0x100),
        _execute(0x100),
        _execute(0xFFFFE),
        _TWO.delete(),
        _execute(0x100),
        Start(_RESET),
        _ZERO.create(),
        _execute(0x102),
        _execute(0x100),
        _ZERO.delete(),
        _execute(0x102),
        _ONE.create(),
        _execute(0x100),
        _execute(0x102),
    ),
    _bare(
        "after-the-last",
        "When slots are deleted from the highest gfn down, code in the others can still run.",
        *(Slot(slot, 0x100 + 2 * slot, at("a", slot)).create() for slot in range(4)),
        *(_execute(0x100 + 2 * slot) for slot in range(4)),
        *_emptied(),
        Slot(3, 0x106, at("b", 3)).create(),
        *(_execute(0x100 + 2 * slot) for slot in range(4)),
    ),
    _bare(
        "but-page-tables-and-code",
        "The only slots hold page tables and code, and are deleted in turn.",
        *USUAL.lay(),
        *programs(),
        TABLES.create(),
        CODE.create(),
        *accesses(),
        TABLES.delete(),
        _execute(0x104),
        USUAL.run(3),
        CODE.delete(),
        USUAL.run(3),
        _execute(0x104),
        TABLES.create(),
        CODE.create(),
        USUAL.run(2),
        NewVm(),
        USUAL.run(2),
        _execute(0x104),
        source="0e3223d8d00a; mmu_check_root",
    ),
    _bare(
        "on-two-vcpus",
        "Two vCPUs stop without a slot, and run in the first one.",
        _execute(0x100, 0),
        _execute(0x100, 1),
        _ONE.create(),
        _execute(0x101, 1),
        _execute(0x100, 0),
        _ONE.delete(),
        _execute(0x100, 0),
        _execute(0x101, 1),
        vcpus=2,
    ),
)
"""All scenarios of VMs without slots."""
