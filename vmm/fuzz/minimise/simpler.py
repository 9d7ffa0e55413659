"""Scenarios that are one step simpler: with less around the operations, or simpler fields.

A `Way` looks at one part of a scenario and yields candidates, the boldest first. Each is smaller
than the scenario by some measure, so that repeating this ends.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import msgspec

from vmm.fuzz.minimise.needs import used_needs
from vmm.scenario.operation import Operation
from vmm.scenario.operations import (
    HUGE_KINDS,
    AnyOperation,
    ChangeHostMemory,
    Guest,
    Mapping,
    Scenario,
    Survey,
)
from vmm.scenario.validate import is_valid

Way = Callable[[Scenario], Iterator[Scenario]]

_LARGE_PAGES = 512
_MOST_OPERATIONS = 100
"""In a longer scenario single operations and pairs are not tried: that would take hours."""

_MOST_UNDOING = 4
"""How many later changes are tried as the one that undoes a change."""

_POOLED = frozenset(
    (
        *("slot", "guest_phys_addr", "gpa", "memory_size", "userspace_addr", "width"),
        *("rounds", "windows"),
    )
)
"""Fields that are not better for being smaller: a shorter race shows a difference less often."""

_BITS = frozenset(("flags", "argument", "attributes"))
_SURVEYS: tuple[Survey, ...] = ("none", "read", "write")


def ways(scenario: Scenario) -> Iterator[Way]:
    """Yield the ways to make a scenario simpler: its surroundings first, then each operation."""
    yield _vm_type
    yield _survey
    yield _vcpus
    yield _guest
    for mapping in scenario.mappings:
        yield partial(_mapping, mapping.name)
    if len(scenario.operations) <= _MOST_OPERATIONS:
        for index in reversed(range(len(scenario.operations))):
            yield partial(_operation, index)
    yield _needs


def pairs(scenario: Scenario) -> Iterator[Way]:
    """Yield the ways to leave out two operations that stand or fall together."""
    if len(scenario.operations) > _MOST_OPERATIONS:
        return
    for index in reversed(range(len(scenario.operations))):
        if isinstance(scenario.operations[index], ChangeHostMemory):
            yield partial(_pair, index)


def with_operations(base: Scenario, operations: tuple[AnyOperation, ...]) -> Scenario:
    """Return a scenario with other operations, and only the mappings that they use."""
    used = set().union(*map(_names_in, operations))
    used |= {mapping.of for mapping in base.mappings if mapping.name in used}
    mappings = tuple(mapping for mapping in base.mappings if mapping.name in used)
    return msgspec.structs.replace(base, operations=operations, mappings=mappings)


def _vm_type(scenario: Scenario) -> Iterator[Scenario]:
    if scenario.vm_type:
        yield msgspec.structs.replace(scenario, vm_type=0)


def _survey(scenario: Scenario) -> Iterator[Scenario]:
    for survey in _SURVEYS[: _SURVEYS.index(scenario.survey)]:
        yield msgspec.structs.replace(scenario, survey=survey)


def _needs(scenario: Scenario) -> Iterator[Scenario]:
    """Keep needs that operations use: a kernel without the feature must not be judged."""
    used = used_needs(scenario)
    for need in scenario.needs:
        if need not in used:
            yield msgspec.structs.replace(
                scenario, needs=tuple(each for each in scenario.needs if each != need)
            )


def _vcpus(scenario: Scenario) -> Iterator[Scenario]:
    for vcpus in range(1, scenario.vcpus):
        yield msgspec.structs.replace(scenario, vcpus=vcpus)


def _guest(scenario: Scenario) -> Iterator[Scenario]:
    if scenario.guest != Guest():
        yield msgspec.structs.replace(scenario, guest=Guest())


def _mapping(name: str, scenario: Scenario) -> Iterator[Scenario]:
    """Yield the scenario with ordinary memory as a mapping, and with fewer pages, fewest first."""
    for mapping in scenario.mappings:
        if mapping.name == name:
            if mapping.kind != "anonymous":
                plain = msgspec.structs.replace(mapping, kind="anonymous", of="")
                yield _with_mapping(scenario, plain)
                if mapping.of:
                    yield _with_mapping(scenario, msgspec.structs.replace(mapping, of=""))
            for pages in _fewer_pages(scenario, mapping):
                yield _with_mapping(scenario, msgspec.structs.replace(mapping, pages=pages))


def _fewer_pages(scenario: Scenario, mapping: Mapping) -> Iterator[int]:
    """Yield the smallest number of pages that all operations stay within, and larger ones."""
    step = _LARGE_PAGES if mapping.kind in HUGE_KINDS else 1
    low, high = 1, mapping.pages // step
    while low < high:
        middle = (low + high) // 2
        smaller = msgspec.structs.replace(mapping, pages=middle * step)
        if is_valid(_with_mapping(scenario, smaller)):
            high = middle
        else:
            low = middle + 1
    while low * step < mapping.pages:
        yield low * step
        low *= 2


def _with_mapping(scenario: Scenario, mapping: Mapping) -> Scenario:
    mappings = tuple(mapping if m.name == mapping.name else m for m in scenario.mappings)
    return msgspec.structs.replace(scenario, mappings=mappings)


def _operation(index: int, scenario: Scenario) -> Iterator[Scenario]:
    before, after = scenario.operations[:index], scenario.operations[index + 1 :]
    if len(scenario.operations) > 1 and index < len(scenario.operations):
        yield with_operations(scenario, before + after)
    for operation in scenario.operations[index : index + 1]:
        for simpler in (*_plainer(operation), *_less("", operation)):
            yield with_operations(scenario, (*before, simpler, *after))


def _pair(index: int, scenario: Scenario) -> Iterator[Scenario]:
    """Yield the scenario without a change of host memory and one of the next, which may undo it.

    Without one of the two alone it is invalid.
    """
    operations = scenario.operations
    if index >= len(operations) or not isinstance(operations[index], ChangeHostMemory):
        return
    changes = (
        at
        for at in range(index + 1, len(operations))
        if isinstance(operations[at], ChangeHostMemory)
    )
    for at in islice(changes, _MOST_UNDOING):
        kept = (*operations[:index], *operations[index + 1 : at], *operations[at + 1 :])
        if kept:
            yield with_operations(scenario, kept)


def _plainer(operation: AnyOperation) -> Iterator[AnyOperation]:
    """Yield an operation as the one that it extends, if its additional fields are defaults."""
    base: type[Any] = type(operation).__bases__[0]
    if base is Operation:
        return
    kept = {name: getattr(operation, name) for name in base.__struct_fields__}
    if type(operation)(**kept) == operation:
        yield base(**kept)


def _less(name: str, value: Any) -> Iterator[Any]:
    """Yield smaller values of a field, by what it consists of."""
    match value:
        case bool():
            return
        case int() if name in _BITS:
            yield from (value & ~(1 << bit) for bit in range(64) if value & 1 << bit)
        case int():
            yield from (n for n in sorted({0, 1, value // 2, value - 1}) if 0 <= n < value)
        case tuple():
            yield from (value[:at] + value[at + 1 :] for at in range(len(value)))
            for at, item in enumerate(value):
                yield from ((*value[:at], less, *value[at + 1 :]) for less in _less(name, item))
        case msgspec.Struct():
            yield from _less_struct(value)


def _less_struct(value: msgspec.Struct) -> Iterator[msgspec.Struct]:
    defaults = _defaults(type(value))
    for name in value.__struct_fields__:
        if name in _POOLED:
            continue
        field = getattr(value, name)
        default = defaults.get(name, field)
        if field != default and not isinstance(field, int):
            yield msgspec.structs.replace(value, **{name: default})
        yield from (msgspec.structs.replace(value, **{name: n}) for n in _less(name, field))


def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the defaults of the fields that have any."""
    fields, defaults = kind.__struct_fields__, kind.__struct_defaults__
    return dict(zip(fields[::-1], defaults[::-1], strict=False))


@lru_cache(maxsize=10_000)
def _names_in(operation: AnyOperation) -> frozenset[str]:
    """Return the names in an operation, which stands in nearly every candidate."""
    return frozenset(_names(operation))


def _names(value: Any) -> Iterator[str]:
    """Yield all names in an operation: mappings, alone or in a place, and others."""
    match value:
        case str():
            yield value
        case tuple():
            for item in value:
                yield from _names(item)
        case msgspec.Struct():
            for field in value.__struct_fields__:
                yield from _names(getattr(value, field))
