"""How tasks are given to workers, by a scheduler that is played here."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from vmm.fleet import engine
from vmm.fleet.engine import MOST_TRIES, Callbacks, Fleet, Task
from vmm.fleet.work import OtherVersionError, Report, run
from vmm.scenario.toolversion import tool_version

GOOD, BAD = "tcp://good:1", "tcp://bad:1"
TASK = Task("a task", ("check", "move-up"))
Work = Callable[[], Report]


@dataclass
class Answer:
    """A future that has ended."""

    work: Work

    def done(self) -> bool:
        return True

    def result(self) -> Report:
        return self.work()

    def cancel(self) -> None:
        pass

    __hash__ = object.__hash__


@dataclass
class Cluster:
    """A client of workers, which do at once what they are asked, and are alive or silent."""

    workers: dict[str, Work]
    last_seen: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    scheduler: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(identity=None))

    def sync(self, call: object, callback_timeout: float) -> dict[str, object]:
        return {"workers": {name: {"last_seen": self.last_seen.get(name)} for name in self.workers}}

    def submit(self, call: object, *_: object, workers: list[str], **__: object) -> Answer:
        self.asked += workers
        return Answer(self.workers[workers[0]])


def a_fleet(cluster: Cluster, patience_s: float = 0.0) -> Fleet:
    fleet: Callable[..., Fleet] = Fleet
    return fleet(cluster, timeout_s=1, patience_s=patience_s)


def well() -> Report:
    return Report(0, "", "")


def other_version() -> Report:
    raise OtherVersionError("it has memslot-vmm 0.0.1")


def without_us() -> Report:
    raise ModuleNotFoundError("No module named 'vmm'")


def refuses() -> Report:
    return Report(2, "", "vmm: no scenario matches 'move-up'\n")


def too_slow() -> Report:
    raise subprocess.TimeoutExpired("vmm", 1)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_POLL_S", 0)
    monkeypatch.setattr(engine, "wait", lambda *_, **__: None)


def outcomes(fleet: Fleet, tasks: list[Task]) -> tuple[list[str], list[str], tuple[Task, ...]]:
    """Run tasks; return the hosts that ended one, why others lost one, and what did not run."""
    done: list[str] = []
    lost: list[str] = []
    callbacks = Callbacks(
        lambda task, host, report: done.append(host), lambda task, host, why: lost.append(why)
    )
    left = fleet.run(tasks, callbacks)
    return done, lost, left


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (other_version, "it has memslot-vmm 0.0.1"),
        (without_us, "No module named 'vmm'"),
        (refuses, "no scenario matches 'move-up'"),
    ],
)
def test_a_worker_that_can_do_no_task_gets_one_only(work: Work, why: str) -> None:
    cluster = Cluster({BAD: work, GOOD: well})
    tasks = [Task(f"task {number}", ("check",)) for number in range(9)]
    done, lost, left = outcomes(a_fleet(cluster), tasks)
    assert (len(done), set(done), lost, left) == (9, {"tcp://good"}, [why], ())
    assert cluster.asked.count(BAD) == 1


def test_where_no_worker_can_do_a_task_it_is_given_up() -> None:
    cluster = Cluster({BAD: refuses})
    assert outcomes(a_fleet(cluster), [TASK]) == ([], ["no scenario matches 'move-up'"], (TASK,))


def test_a_task_that_takes_too_long_is_its_own_fault() -> None:
    cluster = Cluster({BAD: too_slow})
    done, lost, left = outcomes(a_fleet(cluster), [TASK])
    assert (done, len(lost), left) == ([], MOST_TRIES, (TASK,))


def test_a_worker_is_silent_for_as_long_as_somebody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    cluster = Cluster({GOOD: well})
    fleet = a_fleet(cluster)
    assert fleet.hosts()
    now_s += 1000  # This process was stopped, or the whole machine.
    assert fleet.hosts()
    for _ in range(31):
        now_s += 1
        hosts = fleet.hosts()
    assert not hosts
    cluster.last_seen[GOOD] = 1.0
    assert fleet.hosts()


def test_another_version_runs_nothing() -> None:
    with pytest.raises(OtherVersionError, match=r"it has memslot-vmm .*, not 0\.0\.1"):
        run(("--version",), 10, "here", "0.0.1")
    assert run(("--version",), 60, "here", tool_version()).status == 0
