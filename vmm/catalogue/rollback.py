"""Calls that fail half-way: what they had done already must be undone."""

from collections.abc import Iterator

import msgspec

from vmm.catalogue._build import A, B, Slot, at, creates
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    AnyOperation,
    Scenario,
    SetUserMemoryRegion,
)

_ALLOCATIONS = 12
"""More than any of these calls makes for itself."""

_ONE = Slot(1, 0x100, at("a"), pages=2)
_TWO = Slot(2, 0x104, at("b"), pages=2)


def _failing(call: SetUserMemoryRegion) -> Iterator[SetUserMemoryRegion]:
    """Yield the call again and again: its first allocation fails, its second, and so on."""
    for nth in range(1, _ALLOCATIONS + 1):
        yield msgspec.structs.replace(call, fail_nth=nth)


def _short_of_memory(name: str, why: str, *operations: AnyOperation) -> Scenario:
    return Scenario(
        name=f"no-memory-to-{name}",
        why=why,
        source="kvm_set_memory_region, kvm_prepare_memory_region",
        tags=("rollback",),
        mappings=(A, B),
        needs=("failing_allocations",),
        operations=operations,
    )


SCENARIOS = (
    _short_of_memory(
        "create",
        "A creation that finds no memory leaves no slot, and the next one succeeds.",
        *creates(_TWO),
        *_failing(_ONE.create()),
        _ONE.create(),
    ),
    _short_of_memory(
        "move",
        "A move that finds no memory leaves the slot where it is, and reachable.",
        *creates(_ONE, _TWO),
        *_failing(_ONE.move(0x108)),
        _ONE.move(0x108),
    ),
    _short_of_memory(
        "log",
        "LOG_DIRTY_PAGES that finds no memory for its bitmap is not set.",
        *creates(_ONE, _TWO),
        *_failing(_ONE.change(LOG_DIRTY_PAGES)),
        _ONE.change(LOG_DIRTY_PAGES),
        _ONE.log(),
    ),
    _short_of_memory(
        "delete",
        "A deletion that finds no memory leaves the slot, whole.",
        *creates(_ONE, _TWO),
        *_failing(_ONE.delete()),
        _TWO.delete(),
    ),
)
"""All scenarios in which allocations of the kernel fail."""
