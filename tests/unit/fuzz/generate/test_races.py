"""Random races: safe to run, judged without an alarm, and made of all that threads may do."""

from typing import get_args

from tests.ideal import ideal_history
from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.races import race_scenario
from vmm.fuzz.minimise.simpler import ways
from vmm.scenario.history import Raced
from vmm.scenario.operations import (
    Execute,
    GetDirtyLog,
    HostAction,
    Inspect,
    KvmclockCtrl,
    PreFaultMemory,
    Race,
    Scenario,
    SetClockMsr,
    Touch,
)
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING, PLAIN
from vmm.verdict.judge import Status, judge

MANY = 120


def races(number: int = MANY) -> list[Scenario]:
    return [race_scenario(Dice(seed), EVERYTHING, f"race-{seed}") for seed in range(number)]


def race_of(scenario: Scenario) -> Race:
    return next(op for op in scenario.operations if isinstance(op, Race))


def test_an_ideal_kernel_passes_them() -> None:
    for scenario in races(20):
        validate(scenario)
        history = ideal_history(scenario, EVERYTHING)
        assert any(isinstance(event.outcome, Raced) for event in history.events)
        assert judge(history).status is Status.PASSED, scenario.name


def test_a_kernel_that_can_do_little_is_asked_for_no_more() -> None:
    for seed in range(MANY):
        scenario = race_scenario(Dice(seed), PLAIN, "race")
        validate(scenario)
        kinds = {type(op) for op in scenario.operations}
        assert not kinds & {SetClockMsr, KvmclockCtrl}


def test_all_that_threads_may_do_comes_up() -> None:
    made = races()
    hosts = {type(op) for s in made for host in race_of(s).hosts for op in host.operations}
    assert hosts == set(get_args(HostAction))
    guests = {type(op) for s in made for guest in race_of(s).guests for op in guest.program}
    assert guests == {Touch, PreFaultMemory, Execute}
    assert any(guest.migrates for s in made for guest in race_of(s).guests)
    around = {type(op) for s in made for op in s.operations}
    assert {SetClockMsr, KvmclockCtrl, Inspect, GetDirtyLog} <= around


def test_what_is_minimised_goes_on_for_as_long() -> None:
    (scenario, *_) = races(1)
    race = race_of(scenario)
    for way in ways(scenario):
        for simpler in way(scenario):
            for op in simpler.operations:
                if isinstance(op, Race):
                    assert {h.rounds for h in op.hosts} <= {h.rounds for h in race.hosts}
                    assert {g.windows for g in op.guests} <= {g.windows for g in race.guests}
