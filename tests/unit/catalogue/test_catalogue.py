"""The curated scenarios are complete, safe to run, and right on a kernel without faults."""

import re
from functools import cache
from typing import get_args

import msgspec
import pytest

from tests.ideal import ideal_history
from tests.wrong import wrong
from vmm.catalogue import catalogue
from vmm.model.rules import rules_of_outcomes
from vmm.scenario.features import Features
from vmm.scenario.history import History
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, Verdict, judge

_UNUSED_RULES = {
    "no-memory": "takes an allocation that fails",
    "atomic-absent": "takes a backend that emulates instructions",
    "not-emulated": "takes a backend that emulates instructions, or hardware that exits",
    "no-mmu-pages": "takes a kernel without two-dimensional paging",
    "irqchip-known": "takes a kernel without interrupt controllers",
    "devices-known": "takes a kernel without coalesced MMIO or without ioeventfds",
    "cap-known": "takes a kernel without manual protection or without dirty rings",
    "clear-known": "takes a kernel without manual protection",
    "attributes-known": "takes a kernel without memory attributes",
    "pre-fault-known": "takes a kernel without two-dimensional paging",
    "steal-time-mapped": "takes a kernel from before b043138246a4",
}
"""Rules that no curated scenario can exercise, and why."""

_OLD = Features(nr_memslots=509, readonly_mem=False, last_gfn=(1 << 24) - 1)

_KERNELS = {
    "one of 2013": _OLD,
    "one without a zero page": Features(),
    "one with everything": EVERYTHING,
    "one with two address spaces": Features(
        address_spaces=2, smm=True, user_memory2=True, zero_page=True
    ),
}

# Fewer slots than kernels have now, so that the full table is judged in no time.
_FEATURES = msgspec.structs.replace(EVERYTHING, nr_memslots=1024)

_LONG = 10_000


def _short(scenario: Scenario) -> Scenario:
    """Return a scenario without the middle of thousands of operations that repeat each other."""
    operations = scenario.operations
    if len(operations) <= _LONG:
        return scenario
    return msgspec.structs.replace(scenario, operations=(*operations[:1000], *operations[-1000:]))


_SCENARIOS = tuple(map(_short, catalogue(_FEATURES)))


def test_every_operation_is_in_some_scenario() -> None:
    met = {type(op) for scenario in _SCENARIOS for op in scenario.operations}
    assert met == set(get_args(AnyOperation))


@cache
def _histories() -> dict[str, History]:
    """What an ideal kernel makes of each scenario."""
    return {s.name: ideal_history(s, _FEATURES) for s in _SCENARIOS}


@cache
def _verdicts() -> dict[str, Verdict]:
    """The verdict on each scenario, had an ideal kernel run it."""
    return {name: judge(history) for name, history in _histories().items()}


def test_names_are_unique_and_in_kebab_case() -> None:
    names = [scenario.name for scenario in _SCENARIOS]
    assert len(names) == len(set(names))
    assert [n for n in names if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", n)] == []


def test_each_scenario_says_what_it_is_for() -> None:
    assert [s.name for s in _SCENARIOS if not re.fullmatch(r"\S.*[^.]\.", s.why)] == []
    assert [s.name for s in _SCENARIOS if not s.source or not s.tags] == []
    tags = {tag for scenario in _SCENARIOS for tag in scenario.tags}
    assert [tag for tag in tags if not re.fullmatch(r"[a-z]+(-[a-z]+)*", tag)] == []


def test_ideal_kernel_passes() -> None:
    """One test for all: what is looked at is that the model allows what it itself chose."""
    verdicts = _verdicts()
    assert [
        (v.scenario, v.reason, v.difference)
        for v in verdicts.values()
        if v.status is not Status.PASSED or v.reason
    ] == []
    assert [s.name for s in _SCENARIOS if verdicts[s.name].events <= len(s.operations)] == []


@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
def test_a_wrong_answer_to_its_own_operations_is_found(which: int) -> None:
    """However an operation of a scenario is answered wrongly, the scenario fails there."""
    missed = []
    for scenario in (s for s in _SCENARIOS if "racing" not in s.tags):  # They have their own tests.
        history = _histories()[scenario.name]
        own = [i for i, e in enumerate(history.events) if e.origin >= 0]
        index = own[which]
        event = history.events[index]
        bad = msgspec.structs.replace(event, outcome=wrong(event.outcome))
        events = (*history.events[:index], bad, *history.events[index + 1 :])
        difference = judge(msgspec.structs.replace(history, events=events)).difference
        if difference is None or difference.event != index:
            missed.append((scenario.name, event))
    assert missed == []


def test_every_rule_is_exercised() -> None:
    exercised = {rule for verdict in _verdicts().values() for rule in verdict.rules}
    assert {rule.name for rule in rules_of_outcomes()} - exercised == set(_UNUSED_RULES)


def test_catalogue_is_safe_on_every_kernel() -> None:
    """Most scenarios are the same on each, and are looked at once."""
    valid: dict[str, Scenario] = {}
    for features in _KERNELS.values():
        for scenario in catalogue(features):
            if valid.get(scenario.name) != scenario:
                validate(scenario)
                valid[scenario.name] = scenario


@pytest.mark.parametrize("features", _KERNELS.values(), ids=_KERNELS)
def test_catalogue_is_the_same_on_every_kernel(features: Features) -> None:
    assert [_listed(s) for s in catalogue(features)] == [_listed(s) for s in _SCENARIOS]


def _listed(scenario: Scenario) -> tuple[str, str, tuple[str, ...]]:
    return scenario.name, scenario.why, scenario.tags


def test_ideal_kernel_without_internal_slots_passes() -> None:
    features = msgspec.structs.replace(
        Features(nr_memslots=1024),
        irqchip=False,
        touch_limit=1 << 32,
    )
    scenarios = [s for s in catalogue(features) if "internal" in s.tags]
    verdicts = [judge(ideal_history(s, features)) for s in scenarios]
    assert [v.scenario for v in verdicts if v.status is not Status.PASSED] == []
    assert {rule for v in verdicts for rule in v.rules} >= {"tss", "identity-map", "irqchip-known"}


def test_ideal_kernel_without_devices_passes() -> None:
    scenario = next(s for s in _SCENARIOS if s.name == "devices-as-the-capabilities-say")
    verdict = judge(ideal_history(scenario, Features()))
    assert (verdict.status, "devices-known" in verdict.rules) == (Status.PASSED, True)


def test_ideal_old_kernel_passes() -> None:
    runnable = [s for s in catalogue(_OLD) if not _OLD.missing(s.needs, s.vm_type)]
    verdicts = [judge(ideal_history(s, _OLD)) for s in runnable]
    assert [v.scenario for v in verdicts if v.status is not Status.PASSED] == []
    # Without KVM_CAP_READONLY_MEM the flag is refused, and that is looked at too.
    assert "flags-valid" in {rule for verdict in verdicts for rule in verdict.rules}


def test_refusals_leave_a_live_slot_to_look_at() -> None:
    """Each scenario of errnos has a slot that a refusal could have damaged."""
    for scenario in _SCENARIOS:
        if "errno" in scenario.tags and "dirty" not in scenario.tags:
            assert {"create", "reach"} & set(_verdicts()[scenario.name].rules), scenario.name


@pytest.mark.parametrize(
    ("nr_memslots", "name", "filled", "deleted"),
    [
        (509, "table-of-thousands", 509, 128),
        (32764, "table-of-thousands", 1100, 128),
        (509, "table-filled-and-emptied", 509, 1 << 15),
        (32764, "table-filled-and-emptied", 32764, 1 << 15),
    ],
)
def test_a_full_table_uses_every_slot(
    nr_memslots: int, name: str, filled: int, deleted: int
) -> None:
    scenarios = catalogue(Features(nr_memslots=nr_memslots))
    table = next(each for each in scenarios if each.name == name)
    regions = [op for op in table.operations if isinstance(op, SetUserMemoryRegion)]
    users = set(range(filled)) - {table.guest.slot}
    assert {op.slot for op in regions[: len(users)]} == users
    # The slot with the next id goes, too: one more than were counted, or refused.
    gone = {op.slot for op in regions if op.memory_size == 0} - {filled}
    assert gone <= users
    assert len(gone) == min(deleted, len(users))
    gpas = sorted({op.guest_phys_addr for op in regions[: len(users)]})
    assert len(gpas) == len(users)
    touched = {op.gpa & -PAGE_SIZE_BYTES for op in table.operations if isinstance(op, Touch)}
    assert set(gpas) <= touched
