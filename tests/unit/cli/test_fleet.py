"""What `--dask` says of a fleet, whose tasks are played here."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vmm.cli.main import main
from vmm.fleet.engine import Callbacks, Task, quiet
from vmm.fleet.work import Report


@dataclass
class Played:
    """A fleet of one host that returns the same report of every task; or is gone."""

    report: Report
    scheduler_is_gone: bool = False

    def hosts(self) -> dict[str, list[str]]:
        return {"tcp://h": ["tcp://h:1"]}

    def run(self, tasks: Sequence[Task], callbacks: Callbacks) -> tuple[Task, ...]:
        if self.scheduler_is_gone:
            return tuple(tasks)
        for task in tasks:
            callbacks.done(task, "tcp://h", self.report)
        return ()


def fuzz(fleet: Played, out: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    @contextmanager
    def connected(address: str, timeout_s: float) -> Iterator[Played]:
        yield fleet

    monkeypatch.setattr("vmm.cli.fleet._fleet", connected)
    options = ("--seed", "1", "--seconds", "1", "--out", str(out))
    return CliRunner().invoke(main, ["fuzz", "--dask", "tcp://h:8786", *options])


def test_a_search_that_finds_nothing_passes_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = fuzz(Played(Report(0, "no difference found\n", "")), tmp_path / "f", monkeypatch)
    assert (done.exit_code, done.output) == (0, "tcp://h: no difference found\n")
    assert not (tmp_path / "f").exists()


def test_what_a_host_found_is_named_where_it_is_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report(3, "found: {out}/one\n", "", left_out=("one/big",))
    done = fuzz(Played(report), tmp_path / "f", monkeypatch)
    assert f"tcp://h: found: {tmp_path}/f/one\n" in done.stdout
    assert done.stderr == "vmm: tcp://h: one/big: too large to be sent\n"


def test_a_scheduler_that_is_gone_is_told_once_with_what_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = fuzz(Played(Report(0, "", ""), scheduler_is_gone=True), tmp_path / "f", monkeypatch)
    assert done.exit_code == 3
    assert done.stderr == (
        "vmm: the scheduler does not answer any more\nvmm: shard 1 of 1: not run\n"
    )


def test_where_findings_cannot_be_kept_no_host_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    done = fuzz(Played(Report(0, "asked", "")), tmp_path / "file" / "f", monkeypatch)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"vmm: {tmp_path}/file/f: Not a directory\n"


def test_without_the_extra_there_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "vmm.fleet.engine", raising=False)
    for command in (("check", "create-one-page"), ("fuzz", "--seconds", "1")):
        done = CliRunner().invoke(main, [*command, "--dask", "tcp://h:1"])
        assert done.exit_code == 2
        remedy = "pip install 'memslot-vmm[fleet]'"
        assert done.output == f"vmm: --dask needs dask.distributed: {remedy}\n"


def test_the_engines_own_log_is_silent_meanwhile(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("distributed.client")
    level = logger.level
    with quiet():
        logger.critical("heard")
    assert (capfd.readouterr().err, logger.level) == ("", level)
