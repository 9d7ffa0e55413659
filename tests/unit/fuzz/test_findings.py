"""What is written of a finding: a busy machine is not taken for a kernel that hangs."""

import time
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.catalogue._build import at
from vmm.execution import runner
from vmm.execution.runner import Worker
from vmm.fuzz import endings, findings
from vmm.fuzz.findings import Finding
from vmm.fuzz.minimise import process
from vmm.scenario.demand import demand
from vmm.scenario.history import End, Header, History
from vmm.scenario.operations import (
    Mapping,
    PreFaultMemory,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.identity import Identity

SCENARIO = Scenario("one", (Touch(0x5000),))
WELL = ideal_history(SCENARIO)
HUNG = msgspec.structs.replace(WELL, events=(), end=End("hung: no end within 0.06 s", 0))
HOST: Any = SimpleNamespace(in_brief=dict)


def recorded(monkeypatch: pytest.MonkeyPatch, *histories: History) -> list[float]:
    """Let runs return these histories, and then the last one; return the list of their limits."""
    limits: list[float] = []
    clock = count(0, 0.4)
    left = list(histories)

    def run(*_: object, time_limit_s: float, **__: object) -> History:
        limits.append(time_limit_s)
        return left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(findings, "run_isolated", run)
    monkeypatch.setattr(process, "run_isolated", run)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    return limits


def written(identity: Identity, time_limit_s: float) -> History | None:
    return findings._history(SCENARIO, FEATURES, HOST, Finding(SCENARIO, identity, 0), time_limit_s)


def test_no_try_gets_only_what_is_left_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = recorded(monkeypatch, WELL)
    assert written(Identity("hung"), 1.0) == WELL
    assert len(limits) > 1
    assert min(limits) >= 5.0


def test_a_hang_does_not_take_the_place_of_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(monkeypatch, WELL, HUNG)
    assert written(Identity("Touch", ("hole",), "MMIO"), 1.0) == WELL
    recorded(monkeypatch, WELL, HUNG)
    assert written(Identity("hung"), 1.0) == HUNG


def test_what_takes_long_gets_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = recorded(monkeypatch, HUNG)
    monkeypatch.setattr(runner, "demand", lambda one: replace(demand(one), seconds=44.0))
    task = process.Task(SCENARIO, Identity("hung"), FEATURES, 60.0, 0)
    assert process._ending_of(task, SCENARIO) == Identity("hung")
    assert limits == [44.0]


def test_time_for_which_it_waits_for_a_cpu_does_not_count() -> None:
    child: Any = SimpleNamespace(starved_s=lambda: 7.0, end=lambda: "")
    with Worker([Header(SCENARIO, FEATURES, {})]) as worker:
        worker._child = child
        worker._limit_s, worker._deadline = 1.0, 0.0
        assert worker.time_left_s == 0
        worker._deadline = time.monotonic() - 1.0
        assert 5.0 < worker.time_left_s <= 6.0
        worker._deadline = time.monotonic() - 20.0  # A machine is not that busy.
        assert worker.time_left_s == 0


def test_a_hang_that_is_known_is_told_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = SetUserMemoryRegion(1, 0x100000, 0x1000, at("a"))
    ahead = PreFaultMemory(0x100000, 0x1000)
    operations = (slot, ahead, SetUserMemoryRegion(1), ahead)
    scenario = Scenario("ahead", operations, (Mapping("a", 1),), survey="none")
    whole = ideal_history(scenario, EVERYTHING)
    first, second = (n for n, e in enumerate(whole.events) if e.operation == ahead)
    task = process.Task(scenario, Identity("hung"), EVERYTHING, 60.0, 0, host={"vendor": "x"})

    def hung_at(index: int) -> tuple[bool, bool]:
        end = End("hung: no end within 5 s")
        cut = msgspec.structs.replace(whole, events=whole.events[:index], end=end)
        for module in (endings, process):
            monkeypatch.setattr(module, "run_isolated", lambda *_, **__: cut)
        is_known = endings.known_hang(scenario, EVERYTHING, {"vendor": "x"}) is not None
        return is_known, process._ending_of(task, scenario) is not None

    assert hung_at(second) == (True, False)
    assert hung_at(first) == (False, True)
    assert endings.known_hang(SCENARIO, EVERYTHING, {"vendor": "x"}) is None  # It is not run.
