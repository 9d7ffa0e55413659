"""Calls that fail half-way: the kernel must undo what they have done."""

from collections.abc import Iterator

import msgspec

from vmm.catalogue._area import Area
from vmm.catalogue._build import Slot, at, creates
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    SetUserMemoryRegion,
)

_ALLOCATIONS = 12
"""More than any of these calls makes."""

_ONE = Slot(1, 0x100, at("a"), pages=2)
_TWO = Slot(2, 0x104, at("b"), pages=2)


def _failing(call: SetUserMemoryRegion) -> Iterator[SetUserMemoryRegion]:
    """Yield the call repeatedly: its first allocation fails, then its second, and so on."""
    for nth in range(1, _ALLOCATIONS + 1):
        yield msgspec.structs.replace(call, fail_nth=nth)


_short_of_memory = Area(
    prefix="no-memory-to-",
    tags=("rollback",),
    source="kvm_set_memory_region, kvm_prepare_memory_region",
    needs=("failing_allocations",),
)


SCENARIOS = (
    _short_of_memory(
        "create",
        "A creation that cannot allocate memory leaves no slot, and the next one succeeds.",
        *creates(_TWO),
        *_failing(_ONE.create()),
        _ONE.create(),
    ),
    _short_of_memory(
        "move",
        "A move that cannot allocate memory leaves the slot where it is, and reachable.",
        *creates(_ONE, _TWO),
        *_failing(_ONE.move(0x108)),
        _ONE.move(0x108),
    ),
    _short_of_memory(
        "log",
        "LOG_DIRTY_PAGES is not set if its bitmap cannot be allocated.",
        *creates(_ONE, _TWO),
        *_failing(_ONE.change(LOG_DIRTY_PAGES)),
        _ONE.change(LOG_DIRTY_PAGES),
        _ONE.log(),
    ),
    _short_of_memory(
        "delete",
        "A deletion that cannot allocate memory leaves the whole slot.",
        *creates(_ONE, _TWO),
        *_failing(_ONE.delete()),
        _TWO.delete(),
    ),
)
"""All scenarios in which kernel allocations fail."""
