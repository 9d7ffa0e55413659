"""The fuzzing run when its workers fail, and what it then leaves behind."""

import errno
import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import pytest

from tests.ideal import FEATURES
from vmm.cli.fuzz import Broken, _status
from vmm.fuzz import driver
from vmm.fuzz.driver import Fuzzer
from vmm.fuzz.findings import Finding
from vmm.fuzz.generate.dice import seed_of
from vmm.fuzz.interruption import Interruption
from vmm.fuzz.journal import Intent, Journal, read_journal
from vmm.fuzz.messages import AnyMessage, Differs, Ended, Failed, Progress, send
from vmm.fuzz.minimise.queue import Queue
from vmm.fuzz.tally import Plan, Tally
from vmm.fuzz.worker import Assignment, run_worker
from vmm.host.child import Child
from vmm.host.cpus import allowed
from vmm.host.hostinfo import host_facts
from vmm.kvm.system import Kvm
from vmm.scenario.codec import read_scenario
from vmm.scenario.operations import (
    Execute,
    Mapping,
    Place,
    PreFaultMemory,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.verdict.identity import Identity
from vmm.verdict.known.issues import KNOWN

SCENARIO = Scenario(
    "harmless",
    (SetUserMemoryRegion(0, 0x10000, 0x1000, Place("a")), SetUserMemoryRegion(0)),
    (Mapping("a", 1),),
    survey="none",
)
IDENTITY = Identity("SetUserMemoryRegion", ("create",), "Done")
INTENT = Intent(7, (1, 1), 0, 1, (SCENARIO,))
HOST = host_facts()
HANDLE = Fuzzer._handle


def run(
    monkeypatch: pytest.MonkeyPatch,
    plan: Plan,
    work: Callable[[Assignment, Connection], None],
    interruption: Interruption | None = None,
) -> Tally:
    """Return the result of a run whose workers do this."""
    monkeypatch.setattr(driver, "run_worker", work)
    fuzzer = Fuzzer(plan, FEATURES, HOST, (), lambda _: None)
    return fuzzer.run(interruption or Interruption())


def begin(assignment: Assignment, to: Connection) -> None:
    Journal(assignment.journal).begin(INTENT)


def die(assignment: Assignment, to: Connection) -> None:
    begin(assignment, to)
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def be_killed(assignment: Assignment, to: Connection) -> None:
    begin(assignment, to)
    os.kill(os.getpid(), signal.SIGKILL)


def be_stopped(assignment: Assignment, to: Connection) -> None:
    begin(assignment, to)
    os.kill(os.getpid(), signal.SIGSTOP)


def hang(assignment: Assignment, to: Connection) -> None:
    begin(assignment, to)
    signal.pause()


@pytest.mark.parametrize(("work", "how"), [(die, "died: SIGSEGV"), (hang, "hung: nothing heard")])
def test_worker_that_fails_is_a_finding_with_journal_and_log(
    kvm: Kvm,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    work: Callable[[Assignment, Connection], None],
    how: str,
) -> None:
    monkeypatch.setattr(driver, "_SILENCE_S", 0.2)
    tally = run(monkeypatch, Plan(7, tmp_path, max_findings=1), work)
    (finding,) = tally.findings
    assert finding.name.startswith(how[:4])
    assert tally.notes[0].startswith(f"harmless {how}")
    assert read_scenario(finding / "scenario.json").operations == SCENARIO.operations
    log = (finding / "kernel-log.txt").read_text()
    assert log.startswith(how)
    assert ("kernel stack" in log) == how.startswith("hung")
    left = read_journal(finding / "under-way.journal")
    assert left is not None
    assert left.intent == INTENT
    assert tally.remarks[finding.name] == "in 0 of 10 runs"
    assert sorted(tmp_path.iterdir()) == [finding]
    assert not tally.differs
    assert _status(tally) == 3


def test_a_worker_that_hangs_when_the_time_is_over_is_a_finding(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "_SILENCE_S", 0.5)
    tally = run(monkeypatch, Plan(7, tmp_path, seconds=0.1), hang)
    (finding,) = tally.findings
    assert finding.name.startswith("hung")
    assert tally.notes[0].startswith("harmless hung: nothing heard for 0.5 s")
    assert _status(tally) == 3


@contextmanager
def busy(cpu: int) -> Iterator[None]:
    """Let five processes take turns with whoever uses a CPU, for some seconds at most."""
    others = [Child.start(partial(_spin, cpu), f"busy-{number}", str) for number in range(5)]
    try:
        yield
    finally:
        for each in others:
            each.end()


def _spin(cpu: int, to: Connection) -> None:
    os.sched_setaffinity(0, {cpu})
    until = time.monotonic() + 20
    while time.monotonic() < until:
        pass


def test_a_worker_that_waits_for_a_busy_cpu_does_not_hang(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def work(assignment: Assignment, to: Connection) -> None:
        begin(assignment, to)
        os.sched_setaffinity(0, {assignment.cpu})
        until = time.process_time() + 0.15
        while time.process_time() < until:
            pass
        send(to, Progress(1, 500, 0, 0, {}))
        send(to, Ended())

    monkeypatch.setattr(driver, "_SILENCE_S", 0.6)
    plan = Plan(7, tmp_path, operations=100)
    begun = time.monotonic()
    with busy(sorted(allowed())[0]):
        tally = run(monkeypatch, plan, work)
    assert time.monotonic() - begun > 0.6, "the CPU was busy"
    assert (tally.notes, tally.findings, tally.scenarios) == ([], [], 1)
    assert _status(tally) == 0


def test_a_worker_that_hangs_beside_others_is_a_finding_still(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "_SILENCE_S", 0.3)
    with busy(sorted(allowed())[0]):
        tally = run(monkeypatch, Plan(7, tmp_path, max_findings=1), hang)
    (finding,) = tally.findings
    assert finding.name.startswith("hung")


def test_a_known_hang_is_no_finding_and_what_may_meet_it_is_left_out(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    issue = next(each.issue for each in KNOWN if each.issue.hangs)

    def work(assignment: Assignment, to: Connection) -> None:
        if not assignment.avoids:
            hang(assignment, to)
        send(to, Progress(len(assignment.avoids), 500, 0, 0, {}))
        send(to, Ended())

    monkeypatch.setattr(driver, "_SILENCE_S", 0.2)
    monkeypatch.setattr(driver, "known_hang", lambda *_: issue)
    tally = run(monkeypatch, Plan(7, tmp_path, operations=100), work)
    assert (tally.findings, tally.known, tally.scenarios) == ([], 1, 1)
    assert tally.notes[1].startswith(f"known issue {issue.name}")
    assert _status(tally) == 0


def test_scenarios_that_may_meet_an_avoided_issue_are_left_out(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ahead = PreFaultMemory(0x10000, 0x1000)
    met = msgspec.structs.replace(SCENARIO, operations=(ahead, *SCENARIO.operations, ahead))
    monkeypatch.setattr("vmm.fuzz.worker.generate", lambda seed, *_: (SCENARIO, met)[seed % 2])
    monkeypatch.setattr("vmm.fuzz.worker.seed_of", lambda _, index: index)
    name = "pre-fault-with-an-obsolete-root"

    def avoiding(assignment: Assignment, to: Connection) -> None:
        run_worker(replace(assignment, avoids=frozenset({name})), to)

    tally = run(monkeypatch, Plan(7, tmp_path / "out", scenarios=4), avoiding)
    assert (tally.scenarios, tally.known) == (2, 2)


@pytest.mark.parametrize("work", [be_killed, be_stopped])
def test_worker_that_somebody_killed_or_stopped_is_no_finding(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    work: Callable[[Assignment, Connection], None],
) -> None:
    monkeypatch.setattr(driver, "_SILENCE_S", 0.2)
    monkeypatch.setattr(driver, "_MAX_RESTARTS", 1)
    tally = run(monkeypatch, Plan(7, tmp_path), work)
    assert tally.findings == []
    assert "killed or stopped from outside" in tally.notes[0]
    assert tally.notes[-1] == "ended early: 2 workers hung, died or failed"
    assert _status(tally) == 3


def test_worker_that_was_killed_once_is_replaced_and_the_run_is_inconclusive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def work(assignment: Assignment, to: Connection) -> None:
        if assignment.first == 0:
            be_killed(assignment, to)
        send(to, Progress(1, 500, 0, 0, {}))
        send(to, Ended())

    tally = run(monkeypatch, Plan(7, tmp_path, operations=100), work)
    assert tally.operations == 500
    assert not tally.ended_early
    assert _status(tally) == 3


@pytest.mark.parametrize("slow", [0, 1])
def test_counted_scenarios_give_the_same_finding_whichever_worker_is_faster(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slow: int
) -> None:
    longer = msgspec.structs.replace(SCENARIO, operations=SCENARIO.operations * 2)

    def work(assignment: Assignment, to: Connection) -> None:
        time.sleep(0.3 if assignment.first == slow else 0)
        send(to, Differs(longer if assignment.first else SCENARIO, IDENTITY))
        send(to, Ended())

    queued = []
    monkeypatch.setattr(Queue, "add", lambda queue, finding: queued.append(finding.scenario))
    run(monkeypatch, Plan(7, tmp_path, jobs=2, scenarios=2), work)
    assert queued == [SCENARIO]


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_counted_scenarios_are_the_same_ones_for_any_number_of_jobs(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jobs: int
) -> None:
    made = tmp_path / "made"

    def generated(seed: int, *_: object) -> Scenario:
        with made.open("a") as file:
            file.write(f"{seed}\n")
        return SCENARIO

    monkeypatch.setattr("vmm.fuzz.worker.generate", generated)
    plan = Plan(7, tmp_path / "out", jobs=jobs, shard=(2, 3), scenarios=4)
    tally = run(monkeypatch, plan, run_worker)
    assert tally.scenarios == 4
    wanted = sorted(seed_of(7, 1 + 3 * number) for number in range(4))
    assert sorted(map(int, made.read_text().split())) == wanted


def test_operations_are_shared_among_the_jobs(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vmm.fuzz.worker.generate", lambda *_: SCENARIO)
    tally = run(monkeypatch, Plan(7, tmp_path / "out", jobs=2, operations=20), run_worker)
    assert (tally.scenarios, tally.operations) == (4, 24)  # The guest's slot is three of six.
    assert not tally.ended_early


def test_error_of_ours_costs_a_scenario_and_not_what_was_found(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def work(assignment: Assignment, to: Connection) -> None:
        begin(assignment, to)
        if assignment.first == 0:
            send(to, Failed("Traceback", scenario=SCENARIO))
            return
        send(to, Differs(SCENARIO, IDENTITY))
        signal.pause()

    tally = run(monkeypatch, Plan(7, tmp_path, max_findings=1), work)
    assert len(tally.findings) == 1
    assert tally.failure == "Traceback"
    assert "harmless: internal error" in tally.notes
    assert _status(tally) == 1


def test_run_that_is_interrupted_before_its_budget_ends_is_inconclusive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for plan, status in ((Plan(7, tmp_path, seconds=60.0), 3), (Plan(7, tmp_path), 0)):
        interruption = Interruption()

        def work(assignment: Assignment, to: Connection) -> None:
            send(to, Progress(1, 500, 0, 0, {}))
            signal.pause()

        def hear(messages: Fuzzer, message: AnyMessage, asks: Interruption = interruption) -> None:
            HANDLE(messages, message)
            asks.asked = True

        monkeypatch.setattr(Fuzzer, "_handle", hear)
        assert _status(run(monkeypatch, plan, work, interruption)) == status


def test_an_empty_folder_that_was_there_before_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "made"):
        interruption = Interruption()
        interruption.asked = True
        run(monkeypatch, Plan(7, tmp_path / folder), begin, interruption)
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_descriptors_that_run_out_are_the_hosts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(*_: object) -> Child:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Child, "start", start)
    tally = run(monkeypatch, Plan(7, tmp_path / "out"), begin)
    assert tally.notes == ["ended early: the host: Too many open files (ulimit -n)"]
    assert _status(tally) == 3


def test_findings_of_one_fault_are_kept_together_the_shortest_first(
    kvm: Kvm, tmp_path: Path
) -> None:
    calls = (SetUserMemoryRegion(1, 0x100_000, 0x1000, Place("a")), SetUserMemoryRegion(1))
    looks = (
        (Touch(0x100_000), Touch(0x100_000)),
        (Execute(0x100_000),),
        (Sweep(0x100_000, 2),) * 2,
    )
    tally = Tally()
    queue = Queue(Plan(7, tmp_path), FEATURES, HOST, tally)
    for look in looks:
        scenario = Scenario("look", (*calls, *look), (Mapping("a", 1),), survey="none")
        queue.write(Finding(scenario, Identity(type(look[0]).__name__, ("hole",), "memory"), 7))
    (first,) = tally.findings
    assert first.name.startswith("execute-hole")
    assert sorted(tmp_path.iterdir()) == [first]
    others = sorted((first / "also").iterdir())
    assert [path.name.split("-")[0] for path in others] == ["sweep", "touch"]
    assert tally.also == {first.name: others}
    assert all((path / "scenario.json").is_file() for path in (first, *others))
    other = Scenario("other", calls[:1], (Mapping("a", 1),), survey="none")
    queue.write(Finding(other, Identity("Touch", ("ram",), "MMIO"), 7))
    assert len(tally.findings) == 2


def fail(assignment: Assignment, to: Connection) -> None:
    begin(assignment, to)
    raise ZeroDivisionError


def exit_early(assignment: Assignment, to: Connection) -> None:
    begin(assignment, to)
    os._exit(0)


def exit_at_once(assignment: Assignment, to: Connection) -> None:
    os._exit(0)


def test_worker_that_raises_is_our_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tally = run(monkeypatch, Plan(7, tmp_path / "out"), fail)
    assert tally.failure.startswith("Traceback")
    assert tally.failure.endswith("ZeroDivisionError\n")
    with pytest.raises(Broken):
        _status(tally)
    assert not (tmp_path / "out").exists()


def test_worker_that_exits_while_a_scenario_is_under_way_is_a_finding(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tally = run(monkeypatch, Plan(7, tmp_path / "out", max_findings=1), exit_early)
    assert tally.notes[0] == "harmless died: exit status 0"
    assert len(tally.findings) == 1
    assert _status(tally) == 3


def test_worker_that_exits_before_it_runs_anything_is_inconclusive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tally = run(monkeypatch, Plan(7, tmp_path / "out"), exit_at_once)
    why = "a worker died: exit status 0; nothing says what it ran"
    assert tally.notes == [f"ended early: {why}"]
    assert _status(tally) == 3


def test_full_disk_ends_all_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fill(assignment: Assignment, to: Connection) -> None:
        send(to, Failed(os.strerror(errno.ENOSPC), is_host=True))

    tally = run(monkeypatch, Plan(7, tmp_path / "out", jobs=3), fill)
    assert tally.ended_early
    assert tally.notes == ["ended early: the host: No space left on device"]
    assert not tally.failure


def test_interruption_leaves_what_was_found_as_it_is(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interruption = Interruption()

    def differ(assignment: Assignment, to: Connection) -> None:
        begin(assignment, to)
        send(to, Differs(SCENARIO, IDENTITY))
        signal.pause()

    def found(queue: Queue, finding: Finding) -> None:
        interruption.asked = True
        add(queue, finding)

    add = Queue.add
    monkeypatch.setattr(Queue, "add", found)
    tally = run(monkeypatch, Plan(7, tmp_path), differ, interruption)
    (finding,) = tally.findings
    assert tally.remarks[finding.name] == "not run again; not fully minimised"
    assert "Time ended the minimising" in (finding / "report.md").read_text()
    assert tally.notes == ["interrupted"]


def test_without_time_a_finding_is_not_minimised(kvm: Kvm, tmp_path: Path) -> None:
    tally = Tally()
    queue = Queue(Plan(7, tmp_path), FEATURES, HOST, tally)
    queue.add(Finding(SCENARIO, IDENTITY, 7))
    queue.begin(min(os.sched_getaffinity(0)), left_s=1.0)
    assert queue.connection is None
    assert queue.pending == 0
    (finding,) = tally.findings
    assert tally.remarks[finding.name] == "not run again; not fully minimised"


def test_finding_of_an_earlier_run_is_found_again(kvm: Kvm, tmp_path: Path) -> None:
    first, second = Tally(), Tally()
    for tally in (first, second, second):
        queue = Queue(Plan(7, tmp_path), FEATURES, HOST, tally)
        queue.write(Finding(SCENARIO, IDENTITY, 7))
    assert len(first.findings) == 1
    assert second.findings == []
    assert second.again == first.findings


def test_finding_that_cannot_be_written_is_lost_and_said_so(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    tally = Tally()
    queue = Queue(Plan(7, tmp_path / "out"), FEATURES, HOST, tally)
    queue.add(Finding(SCENARIO, IDENTITY, 7))
    queue.close()
    assert tally.lost == 1
    assert tally.notes[0].startswith("a finding is lost: ")
