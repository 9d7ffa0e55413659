"""Scenarios in a child process: whatever becomes of it, the history up to then is there."""

import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.ideal import FEATURES
from vmm.execution import runner
from vmm.execution.executor import Recorder
from vmm.execution.hostmemory import HostMemory
from vmm.execution.machine import Machine
from vmm.execution.runner import HarnessError, Worker, first_ended, run_isolated
from vmm.execution.tape import FileTape
from vmm.kvm.system import Kvm
from vmm.scenario import codec
from vmm.scenario.demand import demand
from vmm.scenario.history import AnyOutcome, Done, Event, Header, HostChange
from vmm.scenario.operations import Inspect, Lives, Mapping, Place, Scenario, SetUserMemoryRegion
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
        kvm: Kvm,
        scenario: Scenario,
        limit: int,
        recorder: Recorder,
        guest_limit_s: float,
    ) -> str:
        recorder.record(Event(-1, guest_slot(scenario), Done()))
        recorder.begin()
        recorder.record(Event(0, Inspect(), Done()))
        end()
        return ""

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
    history = run_isolated(SCENARIO, FEATURES, time_limit_s=1)
    assert [event.operation for event in history.events] == [guest_slot(SCENARIO)]
    verdict = judge(history)
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason.startswith("hung: no end within 1 s; kernel stack")


def test_our_own_work_takes_no_time_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = HostMemory.changes

    def slow(memory: HostMemory) -> tuple[HostChange, ...]:
        time.sleep(0.5)
        return changes(memory)

    monkeypatch.setattr(HostMemory, "changes", slow)
    headers = [Header(SCENARIO, FEATURES)] * 2
    with Worker(headers) as one, Worker(headers) as other:
        for worker in (one, other):
            worker.start(0)
            worker._deadline = time.monotonic() + 1.2
        begun = time.monotonic()
        assert first_ended([one, other]).ended()
        assert time.monotonic() - begun > 1.2
        for worker in (one, other):
            assert judge(worker.wait().history()).status is Status.PASSED


def test_patience_multiplies_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, signal.pause)
    monkeypatch.setattr(runner, "TIME_LIMIT_S", 0.198)
    with Worker([Header(SCENARIO, FEATURES, {})], patience=4) as worker:
        worker.start(0)
        assert worker.wait().reason.startswith("hung: no end within 0.8 s;")


def test_a_scenario_that_may_take_long_is_not_called_hung_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its size this one may take 0.674 s; the second of two would take a third of a second."""
    ends_with(monkeypatch, lambda: time.sleep(0.4))
    monkeypatch.setattr(runner, "TIME_LIMIT_S", 0.05)
    long = Scenario("long", (Lives("closed", 66),), survey="none")
    assert demand(long).seconds == pytest.approx(0.674)
    headers = [Header(long, FEATURES), Header(SCENARIO, FEATURES)]
    with Worker(headers) as worker, Worker(headers, patience=0.5) as impatient:
        worker.start(0)
        impatient.start(0)
        assert first_ended([worker, impatient]) is impatient
        assert impatient.wait().reason.startswith("hung: no end within 0.337 s;")
        assert worker.wait().reason == ""
        worker.start(1)
        assert "hung: no end within 0.0" in worker.wait().reason
        worker.start(0)
        assert worker.wait(0.1).reason.startswith("hung: no end within 0.1 s;")


def test_a_history_on_disk_lets_each_operation_take_longer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ends_with(monkeypatch, signal.pause)
    monkeypatch.setattr(runner, "TIME_LIMIT_S", 0.1)
    end = run_isolated(SCENARIO, FEATURES, journal=tmp_path / "history.jsonl").end
    assert end is not None
    assert end.reason.startswith("hung: no end within 0.2 s;")


def test_a_caller_that_is_killed_is_no_error_of_this_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = os.getpid()
    real = Machine._set_region

    def set_region(machine: Machine, operation: SetUserMemoryRegion) -> AnyOutcome:
        if operation.caller == "forked-child":
            assert os.getppid() != parent
            os.kill(os.getpid(), signal.SIGKILL)
        return real(machine, operation)

    monkeypatch.setattr(Machine, "_set_region", set_region)
    region = SetUserMemoryRegion(0, 0x10000, 0x1000, Place("a"), caller="forked-child")
    verdict = judge(run_isolated(Scenario("killed", (region,), (Mapping("a", 1),)), FEATURES))
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason == "died: SIGKILL, in the child that was to make the call"
    assert verdict.under_way is not None
    assert verdict.under_way.origin == 0


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
    history = run_isolated(SCENARIO, FEATURES, time_limit_s=1, journal=journal)
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


@pytest.mark.parametrize(
    ("number", "of_the_host"), [(errno.ENOMEM, True), (errno.EPERM, True), (errno.EINVAL, False)]
)
def test_what_the_host_lacks_is_neither_the_kernels_nor_our_fault(
    monkeypatch: pytest.MonkeyPatch, number: int, of_the_host: bool
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    ends_with(monkeypatch, fail)
    with Worker([Header(SCENARIO, FEATURES)]) as worker:
        worker.start(0)
        end = worker.wait().history().end
    assert end is not None
    if of_the_host:
        assert end.reason.startswith(f"the host: {os.strerror(number)}")
    else:
        assert end.reason.startswith("internal error: Traceback ")
        assert "OSError: [Errno 22]" in end.reason


def test_a_full_disk_costs_no_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def write_much() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    ends_with(monkeypatch, write_much)
    journal = tmp_path / "history.jsonl"
    with Worker([Header(SCENARIO, FEATURES)] * 2, journal=journal) as worker:
        worker.start(0)
        history = worker.wait().history()
        assert judge(history).reason == f"the host: {journal}: File too large (ulimit -f)"
        assert len(history.events) == 1
        assert codec.read_history(journal) == history
        monkeypatch.undo()
        worker.start(1)  # A new child, without that limit.
        assert judge(worker.wait().history()).status is Status.PASSED


def test_a_full_disk_of_the_parents_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fill(tape: FileTape, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FileTape, "append", fill)
    with Worker([Header(SCENARIO, FEATURES)], journal=tmp_path / "history.jsonl") as worker:
        worker.start(0)
        history = worker.wait().history()
    assert judge(history).reason == "the host: No space left on device"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EBUSY])
def test_a_device_that_is_gone_is_the_hosts(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse() -> None:
        raise OSError(number, os.strerror(number), "/dev/kvm")

    monkeypatch.setattr(Kvm, "open", refuse)
    verdict = judge(run_isolated(SCENARIO, FEATURES))
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason == f"the host: /dev/kvm: {os.strerror(number)}"


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


def test_a_scenario_that_ended_as_the_interruption_came_is_whole() -> None:
    with Worker([Header(SCENARIO, FEATURES, {})]) as worker:
        worker.start(0)
        while not worker.ended():
            os.sched_yield()
        worker.interrupt()
        record = worker.wait()
    assert record.reason == "interrupted"
    assert judge(record.history()).status is Status.PASSED


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
    monkeypatch.setattr(runner, "TIME_LIMIT_S", 0.198)
    headers = [Header(SCENARIO, FEATURES)]
    with Worker(headers, patience=100) as patient, Worker(headers) as impatient:
        patient.start(0)
        impatient.start(0)
        assert first_ended([patient, impatient]) is impatient
        assert impatient.wait().reason.startswith("hung: no end within 0.2 s;")


def test_a_worker_has_the_name_that_it_was_given() -> None:
    with Worker([Header(SCENARIO, FEATURES)], process="vmm-test") as worker:
        worker.start(0)
        worker.wait()
        names = [process.name() for process in psutil.Process().children()]
        assert "vmm-test" in names
