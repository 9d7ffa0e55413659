"""`memslot_scenario`: curated scenarios as tests."""

import pytest

from vmm.testing.needs import for_kvm

PARAMETER = "memslot_scenario_name"
MARKER = "memslot_scenario"
_THREADS = "ignore:This process .* is multi-threaded:DeprecationWarning"
"""Scenarios run in forked processes, while pytest-xdist has a thread that waits for input."""


def memslot_scenario(*patterns: str) -> "staticmethod[..., None]":
    """Return a test for each curated scenario whose name matches a pattern, in a module or a class.

        test_moves = memslot_scenario("move-*", "zero-va-*")

    What this host lacks is a skip with the reason, a known issue that shows an expected failure; a
    difference fails with the step, the rule and the slot map. Patterns that match nothing are an
    error when tests are collected. Names are the same on every kernel.
    """

    def test(memslot_scenario_name: str) -> None:
        run(memslot_scenario_name)

    marked = pytest.mark.memslot_scenario(*patterns)(test)
    marked = pytest.mark.filterwarnings(_THREADS)(marked)
    # Static, or in a class ``self`` would be the parameter. Pytest reads the marks of the function
    # in a class, but those of the staticmethod in a module.
    static = staticmethod(marked)
    vars(static)["pytestmark"] = vars(marked)["pytestmark"]
    return static


def names_for(patterns: tuple[str, ...]) -> list[str]:
    """Return the names of the scenarios for a test; fail if a pattern matches none."""
    from vmm.catalogue import catalogue
    from vmm.scenario.features import Features
    from vmm.scenario.selection import Selection, SelectionError
    from vmm.scenario.slots import LEAST_SLOTS

    # Names do not depend on the kernel, and with few slots the catalogue is made faster.
    scenarios = catalogue(Features(nr_memslots=LEAST_SLOTS))
    problem = ""
    try:
        found = Selection(patterns, everything=True).among(scenarios)
    except SelectionError as error:
        problem = f"memslot_scenario: {error}"
    if problem:  # Failed here, where no other error is shown before it.
        pytest.fail(problem, pytrace=False)
    return [scenario.name for scenario in found]


def run(name: str) -> None:
    """Run a curated scenario; skip or fail according to its result."""
    from vmm.library.scenarios import curated_scenarios, describe, run_scenario
    from vmm.verdict.judge import Status

    with for_kvm():
        (scenario,) = (each for each in curated_scenarios() if each.name == name)
    checked = run_scenario(scenario)
    if checked.failed:
        pytest.fail(describe(checked), pytrace=False)
    match checked.verdict.status:
        case Status.SKIPPED:
            pytest.skip(checked.verdict.reason)
        case Status.KNOWN:
            pytest.xfail(checked.verdict.reason)
        case Status.DIFFERS | Status.INCONCLUSIVE | Status.INTERNAL_ERROR:
            pytest.fail(describe(checked), pytrace=False)
        case Status.PASSED | Status.PASSES_NOW:
            pass
