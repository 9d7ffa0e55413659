"""`vmm fuzz --dask` on a cluster with a wrong kernel: four hosts find what one finds.

Each worker has its own address in 127.0.0.0/8, so the four of them count as four hosts.
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from distributed import Client, LocalCluster

from tests.lab.lab import environment
from vmm.cli.main import main

FAULT = "create-overlap-einval"
SCENARIOS = 16
_SHARDS = 4
_COMMAND = (sys.executable, "-m", "distributed.cli.dask_worker")
_OPTIONS = ("--nthreads", "1", "--no-nanny", "--no-dashboard")


@contextmanager
def hosts(count: int) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"]]]:
    """Yield a scheduler's address, and ``count`` workers on a wrong kernel."""
    with ExitStack() as stack:
        cluster = stack.enter_context(
            LocalCluster(n_workers=0, processes=True, dashboard_address=None)
        )
        address = cluster.scheduler_address
        workers = []
        for number in range(1, count + 1):
            worker = subprocess.Popen(
                [*_COMMAND, address, *_OPTIONS, "--host", f"127.0.0.{number}"],
                env=environment(FAULT),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(worker.wait, 30)
            stack.callback(worker.kill)
            workers.append(worker)
        with Client(address) as client:
            client.wait_for_workers(count, timeout=60)
        yield address, workers


def search(address: str, out: Path) -> Result:
    options = ("--seed", "3", "--scenarios", str(SCENARIOS), "--out", str(out))
    return CliRunner().invoke(main, ["fuzz", *options, "--dask", address])


@pytest.fixture(scope="module")
def found_by_one(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    out = tmp_path_factory.mktemp("one") / "found"
    with pytest.MonkeyPatch.context() as patched, hosts(1) as (address, _):
        patched.setattr("vmm.cli.fleet._SHARDS", _SHARDS)
        done = search(address, out)
    assert done.exit_code == 1, done.output
    return {path.name for path in out.iterdir()}


@pytest.mark.long
def test_four_hosts_find_what_one_finds_though_one_of_them_dies(
    found_by_one: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.cli.fleet._SHARDS", _SHARDS)
    assert found_by_one
    out = tmp_path / "found"
    with hosts(4) as (address, workers):
        killer = threading.Timer(1.0, workers[2].send_signal, (signal.SIGKILL,))
        killer.start()
        done = search(address, out)
        killer.join()
        assert workers[2].wait(10) == -signal.SIGKILL
    assert done.exit_code == 1, done.output
    assert "lost shard" in done.output
    assert "tried elsewhere" in done.output
    assert {path.name for path in out.iterdir()} == found_by_one
