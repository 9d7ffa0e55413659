"""What the pytest plugin makes of each verdict."""

import dataclasses

import pytest

from tests.results import passed, unhealthy
from vmm.library import scenarios
from vmm.testing.scenarios import run
from vmm.verdict.judge import Status, Verdict
from vmm.verdict.result import Checked

OUTCOMES = {
    Status.PASSED: "",
    Status.PASSES_NOW: "",
    Status.SKIPPED: "Skipped",
    Status.KNOWN: "XFailed",
    Status.DIFFERS: "Failed",
    Status.INCONCLUSIVE: "Failed",
    Status.INTERNAL_ERROR: "Failed",
}


def outcome_of(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(scenarios, "curated_scenarios", lambda: iter((checked.scenario,)))
    monkeypatch.setattr(scenarios, "run_scenario", lambda scenario: checked)
    try:
        run(checked.scenario.name)
    except BaseException as outcome:
        return type(outcome).__name__
    return ""


@pytest.mark.parametrize("status", Status)
def test_every_verdict_is_an_outcome(status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = dataclasses.replace(passed("a"), verdict=Verdict("a", status, "why"))
    assert outcome_of(checked, monkeypatch) == OUTCOMES[status]


def test_a_complaint_of_the_kernel_fails_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome_of(unhealthy("a"), monkeypatch) == "Failed"
