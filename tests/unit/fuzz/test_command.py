"""What a run of ``vmm fuzz`` comes to: its exit status, and what is said of it."""

from collections import Counter
from pathlib import Path

import pytest

from vmm.cli.fuzz import Broken, _status
from vmm.cli.fuzzing import _summary
from vmm.fuzz.tally import Plan, Tally

PLAN = Plan(seed=1, out=Path("findings"))


@pytest.mark.parametrize(
    ("tally", "status"),
    [
        (Tally(scenarios=9), 0),
        (Tally(scenarios=9, inconclusive=2), 0),
        (Tally(scenarios=9, inconclusive=9), 3),
        (Tally(), 3),
        (Tally(scenarios=9, ended_early=True), 3),
        (Tally(scenarios=9, disturbed=True), 3),
        (Tally(scenarios=9, findings=[Path("hung")]), 3),
        (Tally(scenarios=9, lost=1), 3),
        (Tally(scenarios=9, findings=[Path("a")], differs=True, ended_early=True), 1),
        (Tally(scenarios=9, again=[Path("a")], differs=True), 1),
        (Tally(scenarios=9, lost=1, differs=True), 1),
        (Tally(scenarios=9, differs=True, failure="Traceback"), 1),
    ],
)
def test_exit_status_of_a_run(tally: Tally, status: int) -> None:
    assert _status(tally) == status


def test_an_error_of_this_program_is_no_verdict() -> None:
    with pytest.raises(Broken, match="says nothing about the kernel"):
        _status(Tally(scenarios=9, failure="Traceback"))


def test_what_is_known_to_be_wrong_here_is_counted_and_no_finding() -> None:
    tally = Tally(scenarios=9, known=2)
    assert any("2 of them met what is known to be wrong" in x for x in _summary(PLAN, tally))
    assert not tally.differs


def test_what_the_model_does_not_know_is_counted() -> None:
    lines = _summary(PLAN, Tally(scenarios=9, inconclusive=2))
    assert "2 of them asked what the model does not know" in lines
    assert lines[-1] == "no difference found"


def test_how_many_slots_there_were_is_said_as_it_is_counted() -> None:
    tally = Tally(scenarios=9, covered=Counter({"slots:1": 3, "slots:8": 1, "slots:64": 1}))
    assert any(line.endswith("; at least 64 slots at a time") for line in _summary(PLAN, tally))


def test_a_run_of_no_scenario_says_why() -> None:
    assert any(line.endswith("; no slot") for line in _summary(PLAN, Tally()))
    assert any("the time was over before" in line for line in _summary(PLAN, Tally()))
    assert _summary(PLAN, Tally(notes=["the disk is full"])).count("note: the disk is full") == 1
    assert not any("the time was" in line for line in _summary(PLAN, Tally(scenarios=1)))


def test_a_run_that_hung_is_not_called_one_without_a_difference() -> None:
    lines = _summary(PLAN, Tally(scenarios=9, findings=[Path("hung")], remarks={"hung": "once"}))
    assert "no difference found" not in lines
    assert lines[-1].startswith("inconclusive: ")


def test_a_run_that_ended_early_speaks_of_what_ran() -> None:
    tally = Tally(scenarios=9)
    tally.end_early("the host has no room on its disk")
    assert _summary(PLAN, tally)[-1] == "no difference found in what ran"
