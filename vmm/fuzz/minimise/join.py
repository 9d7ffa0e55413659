"""Joins scenarios that ran one after the other in a process into one with several VMs.

A kernel that fails on every n-th call, in whatever VM, may do so in a scenario that makes too few
calls by itself. Together with what ran before it, it fails in a process of its own, too.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec

from vmm.scenario.operations import NewVm, Race, Scenario
from vmm.scenario.validate import is_valid

MOST_OPERATIONS = 2000
"""How many operations of what ran before are kept: more would take too long to minimise."""

_NAMES_A_FILE = ("create_guest_memfd", "close_guest_memfd", "map_guest_memfd", "punch_guest_memfd")
_NAMES = ("mapping", "guest_memfd", "of")


def joins(before: Sequence[Scenario], scenario: Scenario) -> Iterator[Scenario]:
    """Yield a scenario joined with more and more of those before it, given in the order they ran.

    Races, VMs of another type and scenarios with a survey cannot be joined, and are left out.
    """
    joined, count, due = scenario, 0, 1
    if not _can_be_joined(scenario):
        return
    for number, one in enumerate(reversed(before), 1):
        if len(joined.operations) + len(one.operations) > MOST_OPERATIONS:
            break
        longer = _after(one, joined, number) if _can_be_joined(one) else joined
        if longer is joined or not is_valid(longer):
            continue
        joined, count = longer, count + 1
        if count == due:
            yield joined
            due *= 2
    if count and count != due // 2:
        yield joined


def _can_be_joined(scenario: Scenario) -> bool:
    is_plain = scenario.survey == "none" and not scenario.vm_type
    return is_plain and not any(isinstance(op, Race) for op in scenario.operations)


def _after(one: Scenario, other: Scenario, number: int) -> Scenario:
    """Return a scenario whose first VM does what ``one`` did, with memory of its own."""
    if one.guest != other.guest:
        return other
    shared = _at_zero(one, other)
    first = _renamed(one, f"before-{number}-", shared)
    own = tuple(each for each in first.mappings if each.name not in shared.values())
    return msgspec.structs.replace(
        other,
        operations=(*first.operations, NewVm(), *other.operations),
        mappings=(*own, *other.mappings),
        needs=tuple(dict.fromkeys((*first.needs, *other.needs))),
        vcpus=max(first.vcpus, other.vcpus),
    )


def _at_zero(one: Scenario, other: Scenario) -> dict[str, str]:
    """Pair the mappings at address 0, which both must share, by their names."""
    return {
        mine.name: theirs.name
        for mine in one.mappings
        for theirs in other.mappings
        if mine.kind == theirs.kind == "zero" and mine.pages == theirs.pages
    }


def _renamed(scenario: Scenario, prefix: str, shared: dict[str, str]) -> Scenario:
    """Return a scenario with a prefix to the names of its mappings and files."""
    built = cast("dict[str, Any]", msgspec.to_builtins(scenario))
    named = [*built.get("mappings", ())]
    named += [op for op in built["operations"] if op["op"] in _NAMES_A_FILE]
    new = {each["name"]: prefix + each["name"] for each in named} | shared
    for each in named:
        each["name"] = new[each["name"]]
    _rename(built, new)
    return msgspec.convert(built, Scenario)


def _rename(node: object, new: dict[str, str]) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _NAMES and isinstance(value, str):
                node[key] = new.get(value, value)
            else:
                _rename(value, new)
    elif isinstance(node, list | tuple):
        for each in node:
            _rename(each, new)
