"""Every instruction is tried in every kind of place by some curated scenario."""

from collections.abc import Iterator
from functools import cache

import pytest

from tests.ideal import ideal_history
from vmm.catalogue import catalogue
from vmm.scenario.history import Done
from vmm.scenario.instructions import INSTRUCTIONS, Mode, Row, accessed
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    READONLY,
    Instruction,
    Scenario,
    SetUserMemoryRegion,
)
from vmm.scenario.slots import as_id_of
from vmm.verdict.ideal import EVERYTHING

Slots = dict[int, SetUserMemoryRegion]

_PLACES = (
    "memory",
    "readonly",
    "hole",
    "over a page",
    "over a slot",
    "memory and hole",
    "memory and readonly",
    "readonly and hole",
)

_BYTES_ONLY = "has an operand of its own page: it is aligned"
_HANGS = "KVM does not come back: what it shows sgdt-in-a-hole and sidt-on-a-readonly-slot do"
_ALL = "goes wrong wherever it exits: what it shows pusha-in-a-hole and popa-in-a-hole do"
_LEFT_OUT = {
    "lock-cmpxchg16b": _BYTES_ONLY,
    "pusha": _ALL,
    "popa": _ALL,
    "ret": "goes on where a hole's bytes say, and nobody knows what stands there",
    "sgdt": _HANGS,
    "sidt": _HANGS,
    "fxsave": _HANGS,
    "fxsave64": "nobody knows what is begun, once a part has no memory",
    "fxrstor64": "what a hole reads as is no valid state",
}
"""Instructions that have no scenario in some places, and why."""

_ALWAYS = ("memory", "over a page", "over a slot")


def _places(slots: Slots, as_id: int, gpa: int, length: int) -> Iterator[str]:
    """Yield what an access is: where it lies, and which border it lies over."""
    found = [
        next(
            (n for n, op in slots.items() if as_id_of(n) == as_id and at in _gpas(op)),
            None,
        )
        for at in (gpa, gpa + length - 1)
    ]
    kinds = [
        "hole" if n is None else "readonly" if slots[n].flags & READONLY else "memory"
        for n in found
    ]
    if gpa // PAGE_SIZE_BYTES == (gpa + length - 1) // PAGE_SIZE_BYTES:
        yield kinds[0]
    elif kinds == ["memory", "memory"]:
        yield "over a page" if found[0] == found[1] else "over a slot"
    elif kinds[0] != kinds[1]:
        yield " and ".join(kind for kind in ("memory", "readonly", "hole") if kind in kinds)


def _gpas(op: SetUserMemoryRegion) -> range:
    return range(op.guest_phys_addr, op.guest_phys_addr + op.memory_size)


def _met(scenario: Scenario) -> Iterator[tuple[str, Mode, str]]:
    slots: Slots = {}
    for event in ideal_history(scenario, EVERYTHING).events:
        op = event.operation
        if isinstance(op, SetUserMemoryRegion) and event.outcome == Done():
            slots.pop(op.slot, None)
            if op.memory_size:
                slots[op.slot] = op
        elif isinstance(op, Instruction):
            for gpa, length in accessed(op):
                for place in _places(slots, op.as_id, gpa, length):
                    yield op.name, op.mode, place


@cache
def _all_met() -> frozenset[tuple[str, Mode, str]]:
    scenarios = (
        each
        for each in catalogue(EVERYTHING)
        if any(isinstance(op, Instruction) for op in each.operations)
    )
    return frozenset(met for scenario in scenarios for met in _met(scenario))


@pytest.mark.parametrize("row", INSTRUCTIONS.values(), ids=lambda row: row.name)
def test_an_instruction_is_tried_everywhere(row: Row) -> None:
    places = _ALWAYS[: 1 if row.name == "lock-cmpxchg16b" else 3]
    wanted = places if row.name in _LEFT_OUT else _PLACES
    modes: tuple[Mode, ...] = ("real", "long")
    missing = [
        (mode, place)
        for mode in modes
        for place in wanted
        if row.widths(mode) and (row.name, mode, place) not in _all_met()
    ]
    assert missing == []
