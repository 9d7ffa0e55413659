"""Scenarios in a child process: whatever becomes of it, the history up to then is there."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.ideal import FEATURES
from vmm.execution import runner
from vmm.execution.executor import Record
from vmm.execution.machine import Machine
from vmm.execution.runner import HarnessError, Worker, first_ended, run_isolated
from vmm.kvm.system import Kvm
from vmm.scenario import codec
from vmm.scenario.history import AnyOutcome, Done, Event, Header
from vmm.scenario.operations import Inspect, Mapping, Place, Scenario, SetUserMemoryRegion
from vmm.scenario.plan import Step, guest_slot
from vmm.scenario.underway import under_way
from vmm.verdict.judge import Status, judge

SCENARIO = Scenario(
    "one slot",
    (SetUserMemoryRegion(0, 0x10000, 0x1000, Place("a")),),
    (Mapping("a", 1),),
)


def ends_with(monkeypatch: pytest.MonkeyPatch, end: Callable[[], object]) -> None:
    """Let the child record one event, and then meet its end."""

    def execute(
        kvm: Kvm, scenario: Scenario, limit: int, record: Record, begin: Callable[[], None]
    ) -> None:
        record(Event(-1, guest_slot(scenario), Done()))
        begin()
        record(Event(0, Inspect(), Done()))
        end()

    monkeypatch.setattr(runner, "execute", execute)


def test_scenario_that_runs_to_its_end_passes(tmp_path: Path) -> None:
    journal = tmp_path / "history.jsonl"
    history = run_isolated(SCENARIO, FEATURES, journal=journal)
    assert judge(history).status is Status.PASSED
    assert codec.read_history(journal) == history


def test_hang_ends_at_the_limit_and_keeps_what_was_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends_with(monkeypatch, signal.pause)
    history = run_isolated(SCENARIO, FEATURES, time_limit_s=0.2)
    assert [event.operation for event in history.events] == [guest_slot(SCENARIO)]
    verdict = judge(history)
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason.startswith("hung: no end within 0.2 s; kernel stack")


def test_patience_multiplies_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, signal.pause)
    monkeypatch.setattr(runner, "TIME_LIMIT_S", 0.048)
    with Worker([Header(SCENARIO, FEATURES, {})], patience=4) as worker:
        worker.start(0)
        assert worker.wait().reason.startswith("hung: no end within 0.2 s;")


def test_history_on_disk_has_a_time_limit_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ends_with(monkeypatch, signal.pause)
    monkeypatch.setattr(runner, "JOURNAL_TIME_LIMIT_S", 0.2)
    end = run_isolated(SCENARIO, FEATURES, journal=tmp_path / "history.jsonl").end
    assert end is not None
    assert end.reason.startswith("hung: no end within 0.202 s;")


def test_system_call_that_hangs_is_the_one_under_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = Machine.set_region

    def set_region(machine: Machine, operation: SetUserMemoryRegion) -> AnyOutcome:
        if operation in SCENARIO.operations:
            signal.pause()
        return real(machine, operation)

    monkeypatch.setattr(Machine, "set_region", set_region)
    journal = tmp_path / "history.jsonl"
    history = run_isolated(SCENARIO, FEATURES, time_limit_s=0.2, journal=journal)
    assert under_way(history) == (Step(0, SCENARIO.operations[0]),)
    assert under_way(codec.read_history(journal)) == under_way(history)


def test_death_by_a_signal_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
    history = run_isolated(SCENARIO, FEATURES)
    assert history.end is not None
    assert history.end.reason == "died: SIGKILL"
    assert len(history.events) == 1


def test_fault_of_the_harness_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    ends_with(monkeypatch, fail)
    with pytest.raises(HarnessError, match="ZeroDivisionError"):
        run_isolated(SCENARIO, FEATURES)


def test_interruption_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        parent = Path(f"/proc/{os.getppid()}/wchan")
        while "poll" not in parent.read_text():  # It does not wait yet.
            os.sched_yield()
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()

    ends_with(monkeypatch, interrupt)
    assert judge(run_isolated(SCENARIO, FEATURES)).reason == "interrupted"


def test_interruption_before_the_wait_ends_the_history_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ends_with(monkeypatch, signal.pause)
    journal = tmp_path / "history.jsonl"
    with Worker([Header(SCENARIO, FEATURES, {})], journal=journal) as worker:
        worker.start(0)
    history = codec.read_history(journal)
    assert history.header.scenario == SCENARIO
    assert judge(history).reason == "interrupted"


def test_line_that_was_cut_off_does_not_spoil_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journal = tmp_path / "history.jsonl"

    def tear() -> None:
        with journal.open("ab") as file:
            file.write(b'{"type":"ev')
        os.kill(os.getpid(), signal.SIGKILL)

    ends_with(monkeypatch, tear)
    history = run_isolated(SCENARIO, FEATURES, journal=journal)
    assert len(history.events) == 1
    assert judge(history).reason == "died: SIGKILL"
    assert codec.read_history(journal) == history


def test_of_several_workers_the_one_that_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = [Header(msgspec.structs.replace(SCENARIO, name=name), FEATURES) for name in "ab"]
    with Worker(headers) as waits, Worker(headers, process="vmm-test") as ends:
        ends_with(monkeypatch, signal.pause)
        waits.start(0)
        ends_with(monkeypatch, lambda: None)
        ends.start(1)
        assert first_ended([waits, ends]) is ends
        assert ends.wait().reason == ""
        waits.interrupt()
        assert first_ended([waits, ends]) is waits
        assert waits.wait().reason == "interrupted"


def test_the_worker_with_the_least_time_left_is_told_when_none_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends_with(monkeypatch, signal.pause)
    monkeypatch.setattr(runner, "TIME_LIMIT_S", 0.05)
    headers = [Header(SCENARIO, FEATURES)]
    with Worker(headers, patience=100) as patient, Worker(headers) as impatient:
        patient.start(0)
        impatient.start(0)
        assert first_ended([patient, impatient]) is impatient
        assert impatient.wait().reason.startswith("hung: no end within 0.052 s;")


def test_a_worker_has_the_name_that_it_was_given() -> None:
    with Worker([Header(SCENARIO, FEATURES)], process="vmm-test") as worker:
        worker.start(0)
        worker.wait()
        names = [process.name() for process in psutil.Process().children()]
        assert "vmm-test" in names
