"""`vmm check --dask` and `vmm fuzz --dask` on a real cluster of worker processes on this host."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster

from vmm.cli.main import main
from vmm.fleet.engine import Callbacks, Fleet, Task
from vmm.fleet.work import Report

NAMES = ("create-one-page", "move-up", "delete-whatever-the-hva")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two worker processes."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as made:
        yield made


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client of the cluster."""
    with Client(cluster) as made:
        yield made


def callbacks(reports: dict[str, Report], lost: list[str]) -> Callbacks:
    """Return what notes who ended and who lost a worker."""
    return Callbacks(
        lambda task, host, report: reports.__setitem__(task.name, report),
        lambda task, host, why: lost.append(task.name),
    )


def test_a_check_on_a_cluster_is_one_result(cluster: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    arguments = ["check", "--dask", cluster.scheduler_address, "--json", str(file), *NAMES]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(file.read_text())
    assert {scenario["name"] for scenario in result["scenarios"]} == set(NAMES)
    assert result["counts"]["passed"] == len(NAMES)
    assert result["not_run"] == []


def test_a_task_whose_worker_is_killed_is_named_and_done_elsewhere(client: Client) -> None:
    reports: dict[str, Report] = {}
    lost: list[str] = []
    tasks = [Task("long", ("bench", "--work", "run", "--slots", "1", "--rounds", "60", "--no-c"))]
    fleet = Fleet(client, 120)

    def kill_the_busy_one() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for processing in [client.processing()]:
                busy = [worker for worker, keys in processing.items() if keys]
                if busy:
                    pids = client.run(os.getpid, workers=busy)
                    os.kill(pids[busy[0]], signal.SIGKILL)
                    return
            time.sleep(0.1)

    killer = threading.Thread(target=kill_the_busy_one)
    killer.start()
    left = fleet.run(tasks, callbacks(reports, lost))
    killer.join()
    assert left == ()
    assert lost == ["long"]
    assert reports["long"].status == 0


@pytest.mark.long
def test_a_task_whose_worker_stands_still_is_named_and_done_elsewhere(
    cluster: LocalCluster,
) -> None:
    reports: dict[str, Report] = {}
    lost: list[tuple[str, float]] = []
    with Client(cluster) as client, ExitStack() as stack:
        fleet = Fleet(client, 120, silence_s=3)
        began_s = time.monotonic()

        def stop_the_busy_one() -> None:
            for _ in range(300):
                if busy := [worker for worker, keys in client.processing().items() if keys]:
                    pid = client.run(os.getpid, workers=busy)[busy[0]]
                    stack.callback(os.kill, pid, signal.SIGCONT)
                    os.kill(pid, signal.SIGSTOP)
                    return
                time.sleep(0.1)

        stopper = threading.Thread(target=stop_the_busy_one)
        stopper.start()
        callbacks = Callbacks(
            lambda task, host, report: reports.__setitem__(task.name, report),
            lambda task, host, why: lost.append((why, time.monotonic() - began_s)),
        )
        work = ("bench", "--work", "run", "--slots", "1", "--rounds", "90", "--no-c")
        assert fleet.run([Task("long", work)], callbacks) == ()
        stopper.join()
    ((why, after_s),) = lost
    assert why.endswith("has been silent for 3 s")
    assert after_s < 40
    assert reports["long"].status == 0


@pytest.mark.long
def test_a_host_that_is_busy_for_others_has_its_task_wait(client: Client) -> None:
    reports: dict[str, Report] = {}
    (host,) = Fleet(client, 20).hosts()
    task = Task("late", ("show", "create-one-page"))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"\0memslot-vmm fleet {host}")
        threading.Timer(4, other.close).start()
        began_s = time.monotonic()
        assert Fleet(client, 20).run([task], callbacks(reports, [])) == ()
    assert time.monotonic() - began_s > 4
    assert reports["late"].status == 0


@pytest.mark.long
def test_one_host_has_one_task_at_a_time(client: Client) -> None:
    reports: dict[str, Report] = {}
    most = 0
    fleet = Fleet(client, 120)
    stop = threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, sum(len(keys) for keys in client.processing().values()))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    left = fleet.run(
        [Task(str(n), ("show", "create-one-page")) for n in range(6)], callbacks(reports, [])
    )
    stop.set()
    watcher.join()
    assert left == ()
    assert len(reports) == 6
    assert most == 1


@pytest.mark.long
def test_a_search_on_a_cluster_is_the_shards_of_one(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.cli.fleet._SHARDS", 2)
    search = ["fuzz", "--seed", "1", "--operations", "400", "--out", str(tmp_path / "found")]
    done = CliRunner().invoke(main, [*search, "--dask", cluster.scheduler_address])
    assert done.exit_code == 0, done.output
    assert done.output.count("no difference found") == 2


@pytest.mark.long
def test_what_ends_every_worker_is_given_up(client: Client) -> None:
    reports: dict[str, Report] = {}
    lost: list[str] = []
    fleet = Fleet(client, timeout_s=0.01)
    task = Task("too slow", ("show", "create-one-page"))
    assert fleet.run([task], callbacks(reports, lost)) == (task,)
    assert lost == ["too slow"] * 3


@pytest.mark.long
def test_a_scheduler_that_is_killed_leaves_its_tasks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    dask = [sys.executable, "-m", "dask"]
    here = ("--host", "127.0.0.1", "--no-dashboard")
    with log.open("w") as out, ExitStack() as stack:
        command = [*dask, "scheduler", *here, "--port", "0"]
        scheduler = stack.enter_context(subprocess.Popen(command, stderr=out))
        stack.callback(scheduler.kill)
        (address,) = seen(log, r"Scheduler at: +(tcp:\S+)")
        command = [*dask, "worker", address, *here, "--nworkers", "1", "--nthreads", "1"]
        worker = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        stack.callback(worker.terminate)
        client = stack.enter_context(Client(address))
        client.wait_for_workers(1)
        threading.Timer(3, scheduler.kill).start()
        fleet = Fleet(client, timeout_s=60)
        task = Task("long", ("fuzz", "--seed", "1", "--seconds", "30", "--out", "{out}"))
        assert fleet.run([task], callbacks({}, [])) == (task,)
        assert fleet.scheduler_is_gone


def seen(log: Path, pattern: str) -> list[str]:
    """Return what a pattern finds in a log, as soon as it is there."""
    for _ in range(600):
        if found := re.findall(pattern, log.read_text()):
            return found
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_no_scheduler_is_one_line_with_status_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.cli.fleet._CONNECT_S", 1)
    done = CliRunner().invoke(main, ["check", "--dask", "tcp://127.0.0.1:9", *NAMES])
    assert done.exit_code == 2
    assert "vmm: --dask tcp://127.0.0.1:9:" in done.output
