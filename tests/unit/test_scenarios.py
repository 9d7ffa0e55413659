"""The curated scenarios are complete, safe to run, and right on a kernel without faults."""

import re
from functools import cache

import pytest

from scenarios import catalogue
from tests.ideal import FEATURES, ideal_history
from vmm.memslots.check import Status, Verdict, judge
from vmm.memslots.features import Features
from vmm.memslots.operations import Scenario
from vmm.memslots.rules import RULES
from vmm.memslots.validate import validate

_UNUSED_RULES = {
    "guest-memfd-immutable": "takes a guest_memfd that is open",
    "dirty-ring-only": "takes a VM with a dirty ring",
}
"""Rules that no curated scenario can exercise, and why."""

_VARIANTS = {
    "a kernel of 2013": Features(nr_memslots=509, readonly_mem=False, last_gfn=(1 << 24) - 1),
    "the full width": Features(nr_memslots=32764, last_gfn=(1 << 40) - 1, user_memory2=True),
    "two address spaces": Features(address_spaces=2, user_memory2=True, zero_page=True),
}

_SCENARIOS = catalogue(FEATURES)


@cache
def _verdicts() -> dict[str, Verdict]:
    """The verdict on each scenario, had an ideal kernel run it."""
    return {scenario.name: judge(ideal_history(scenario)) for scenario in _SCENARIOS}


def test_names_are_unique_and_in_kebab_case() -> None:
    names = [scenario.name for scenario in _SCENARIOS]
    assert len(names) == len(set(names))
    assert [n for n in names if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", n)] == []


@pytest.mark.parametrize("scenario", _SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario_says_what_it_is_for(scenario: Scenario) -> None:
    assert re.fullmatch(r"\S.*\.", scenario.why)
    assert scenario.source
    assert scenario.tags
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", tag) for tag in scenario.tags)


@pytest.mark.parametrize("scenario", _SCENARIOS, ids=lambda scenario: scenario.name)
def test_ideal_kernel_passes(scenario: Scenario) -> None:
    verdict = _verdicts()[scenario.name]
    assert verdict.difference is None
    assert (verdict.status, verdict.reason) == (Status.PASSED, "")
    assert verdict.events > len(scenario.operations)


def test_every_rule_is_exercised() -> None:
    exercised = {rule for verdict in _verdicts().values() for rule in verdict.rules}
    assert set(RULES) - exercised == set(_UNUSED_RULES)


@pytest.mark.parametrize("features", [*_VARIANTS.values(), FEATURES], ids=[*_VARIANTS, "ideal"])
def test_catalogue_is_safe_on_every_kernel(features: Features) -> None:
    scenarios = catalogue(features)
    for scenario in scenarios:
        validate(scenario)
    assert [s.name for s in scenarios] == [s.name for s in _SCENARIOS]


@pytest.mark.parametrize("features", _VARIANTS.values(), ids=_VARIANTS)
def test_ideal_kernel_passes_with_other_features(features: Features) -> None:
    runnable = [s for s in catalogue(features) if not features.missing(s.needs)]
    verdicts = [judge(ideal_history(s, features)) for s in runnable if "table" not in s.tags]
    assert [v.scenario for v in verdicts if v.status is not Status.PASSED] == []
