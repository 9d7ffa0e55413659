"""What `--dask` says of a fleet, whose tasks are played here."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.results import passed, run_of, skipped
from vmm.cli.main import main
from vmm.fleet.engine import Callbacks, Task, quiet
from vmm.fleet.work import Report
from vmm.report import json
from vmm.report.resultfile import parse_result, result_file
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked


@dataclass
class Played:
    """A fleet of one host that returns the same report of every task; or is gone."""

    report: Report
    scheduler_is_gone: bool = False
    ends: int | None = None
    """After so many tasks the run is interrupted, or no host is left if ``interrupts`` is false."""
    interrupts: bool = True
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def hosts(self) -> dict[str, list[str]]:
        return {"tcp://h": ["tcp://h:1"]}

    def run(self, tasks: Sequence[Task], callbacks: Callbacks) -> tuple[Task, ...]:
        self.asked += [task.command for task in tasks]
        if self.scheduler_is_gone:
            return tuple(tasks)
        for task in tasks[: self.ends]:
            callbacks.done(task, "tcp://h", self.report)
        if self.ends is not None and self.interrupts:
            raise KeyboardInterrupt
        return tuple(tasks[len(tasks) if self.ends is None else self.ends :])


def fuzz(fleet: Played, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Result:
    @contextmanager
    def connected(address: str, timeout_s: float) -> Iterator[Played]:
        yield fleet

    monkeypatch.setattr("vmm.cli.fleet._fleet", connected)
    options = ("--seed", "1", "--seconds", "1", "--out", str(out))
    return CliRunner().invoke(main, ["fuzz", "--dask", "tcp://h:8786", *options, *more])


NAMES = ("create-one-page", "move-up", "move-down")


def check(fleet: Played, file: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    """Check three scenarios as tasks of one each, with a result in a file."""

    @contextmanager
    def connected(address: str, timeout_s: float) -> Iterator[Played]:
        yield fleet

    monkeypatch.setattr("vmm.cli.fleet._fleet", connected)
    monkeypatch.setattr("vmm.cli.fleet._AT_ONCE", 1)
    arguments = ("check", "--dask", "tcp://h:8786", "--json", str(file), *options, *NAMES)
    return CliRunner().invoke(main, arguments)


def result_of(status: int, *checked: Checked) -> Report:
    return Report(status, "", "", {"result": json.text(result_file(run_of(*checked))).encode()})


@pytest.mark.parametrize("interrupts", [True, False])
def test_a_result_that_lacks_scenarios_says_so_as_the_status_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupts: bool
) -> None:
    fleet = Played(result_of(0, passed("create-one-page")), ends=1, interrupts=interrupts)
    done = check(fleet, tmp_path / "r", monkeypatch)
    result = parse_result((tmp_path / "r").read_bytes(), "r")
    assert (done.exit_code, result.exit_status, result.status) == (3, 3, Status.INCONCLUSIVE)
    assert [each.name for each in result.scenarios] == ["create-one-page"]
    assert result.not_run == ("move-up", "move-down")
    assert result.early == ("interrupted" if interrupts else "no host was left that could run all")
    assert (done.stderr == "vmm: interrupted\n") is interrupts


def test_a_result_of_skips_alone_has_the_status_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Played(result_of(4, skipped("create-one-page", "needs a thing")))
    done = check(fleet, tmp_path / "r", monkeypatch)
    result = parse_result((tmp_path / "r").read_bytes(), "r")
    assert (done.exit_code, result.exit_status, result.status) == (4, 4, Status.SKIPPED)


def test_an_interruption_before_any_result_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = check(Played(Report(0, "", ""), ends=0), tmp_path / "r", monkeypatch)
    assert (done.exit_code, done.stderr) == (3, "vmm: interrupted\n")
    assert parse_result((tmp_path / "r").read_bytes(), "r").early == "interrupted"


def test_a_host_that_returns_no_result_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = check(Played(Report(0, "", "")), tmp_path / "r", monkeypatch)
    assert "vmm: tcp://h: no result of create-one-page and 0 more: it left none\n" in done.stderr


def test_hosts_get_the_options_that_concern_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMM_PATIENCE", "3")
    fleet = Played(result_of(0, passed("create-one-page")))
    check(fleet, tmp_path / "r", monkeypatch, "--jobs", "2", "--max-differences", "5", "-q")
    options = ("--patience", "3.0", "--jobs", "2", "--max-differences", "5", "--quiet")
    assert fleet.asked[0][: len(options) + 1] == ("check", *options)
    fleet = Played(Report(0, "", ""))
    fuzz(fleet, tmp_path / "f", monkeypatch, "--jobs", "2", "--findings", "1")
    assert fleet.asked[0][:5] == ("fuzz", "--jobs", "2", "--findings", "1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("--require-run", "3"),
        ("--failed-histories", "d"),
        ("--journal", "d"),
        ("--histories", "d/h"),
    ],
)
def test_options_of_a_check_that_hosts_do_not_get_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    done = check(Played(Report(0, "", "")), tmp_path / "r", monkeypatch, name, value)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"vmm: --dask does not go with {name} ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("--shard", "1/4"), ("--corpus", "c"), ("--resume", ""), ("--require-run", "3")],
)
def test_options_of_a_search_that_hosts_do_not_get_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    options = (name, *([value] if value else []))
    done = fuzz(Played(Report(0, "", "")), tmp_path / "f", monkeypatch, *options)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"vmm: --dask does not go with {name} ")


def test_a_file_that_cannot_be_written_is_told_before_anybody_connects(tmp_path: Path) -> None:
    arguments = ("check", "--dask", "tcp://127.0.0.1:9", "--json", str(tmp_path / "no" / "r"))
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stderr) == (
        2,
        f"vmm: {tmp_path}/no/r: No such file or directory\n",
    )


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
