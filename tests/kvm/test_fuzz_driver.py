"""The fuzzing run when its workers fail, and what it then leaves behind."""

import errno
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.ideal import FEATURES
from vmm.fuzz import driver
from vmm.fuzz.driver import Fuzzer
from vmm.fuzz.findings import Finding
from vmm.fuzz.interruption import Interruption
from vmm.fuzz.journal import Intent, Journal, read_journal
from vmm.fuzz.messages import Differs, Failed, send
from vmm.fuzz.minimise.queue import Queue
from vmm.fuzz.tally import Plan, Tally
from vmm.fuzz.worker import Assignment
from vmm.host.hostinfo import host_facts
from vmm.kvm.system import Kvm
from vmm.scenario.codec import read_scenario
from vmm.scenario.operations import Mapping, Place, Scenario, SetUserMemoryRegion
from vmm.verdict.identity import Identity

SCENARIO = Scenario(
    "harmless",
    (SetUserMemoryRegion(0, 0x10000, 0x1000, Place("a")), SetUserMemoryRegion(0)),
    (Mapping("a", 1),),
    survey="none",
)
IDENTITY = Identity("SetUserMemoryRegion", ("create",), "Done")
INTENT = Intent(7, (1, 1), 0, 1, (SCENARIO,))
HOST = host_facts()


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
    os.kill(os.getpid(), signal.SIGKILL)


def hang(assignment: Assignment, to: Connection) -> None:
    begin(assignment, to)
    signal.pause()


@pytest.mark.parametrize(("work", "how"), [(die, "died: SIGKILL"), (hang, "hung: nothing heard")])
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


def test_worker_that_ends_without_a_word_is_our_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tally = run(monkeypatch, Plan(7, tmp_path / "out"), begin)
    assert tally.failure == "a worker ended without a word"
    assert not (tmp_path / "out").exists()


def test_full_disk_ends_all_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fill(assignment: Assignment, to: Connection) -> None:
        send(to, Failed(os.strerror(errno.ENOSPC), is_disk=True))

    tally = run(monkeypatch, Plan(7, tmp_path / "out", jobs=3), fill)
    assert tally.ended_early
    assert tally.notes == ["ended early: No space left on device"]
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
