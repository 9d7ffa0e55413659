"""A command that ends before it has a result: its files tell why, and are never an older run's."""

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import click
import pytest

from tests.played import played, vmm
from vmm.bench.result import BenchFileError, bench_of
from vmm.cli.command import Command
from vmm.cli.lab.matrix import lab_task
from vmm.cli.main import COMMANDS, main
from vmm.cli.output.errors import HostFailed, NothingRan, Unusable
from vmm.cli.output.formats import FORMATS
from vmm.cli.output.unfinished import Early, never_stale, not_read
from vmm.lab.errors import LabError
from vmm.report.resultfile import parse_result

OLD = "of an older run"
WRITERS = ("check", "run create-one", "judge {}/h.jsonl", "bench", "lab run -- check")
"""Commands whose result is a file."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "result.json"
    file.write_text(OLD)
    return file


def every_command(group: click.Group) -> Iterator[click.Command]:
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from every_command(command)
            else:
                yield command


def test_all_commands_are_of_the_kind_that_lets_signals_come() -> None:
    found = list(every_command(main))
    assert len(found) > len(COMMANDS)
    assert [each.name for each in found if not isinstance(each, Command)] == []


def test_each_command_that_takes_a_file_for_json_promises_it(tmp_path: Path) -> None:
    file = tmp_path / "new.json"
    for command in every_command(main):
        option = next((each for each in command.params if each.name == "json_file"), None)
        if option is None:
            continue
        arguments = ["--json", str(file), *["x" for each in command.params if each.required]]
        ctx = command.make_context("vmm", arguments, resilient_parsing=True)
        assert isinstance(command, Command)
        with pytest.raises(HostFailed), command.never_stale(ctx):
            raise HostFailed("a full disk")
        assert "a full disk" in file.read_text(), command.name
        file.unlink()


@pytest.mark.parametrize("command", WRITERS)
def test_an_interruption_that_has_waited_is_told_in_the_result(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path, waiting: None
) -> None:
    kernel = played(monkeypatch)
    result = vmm(*command.format(tmp_path).split(), "--json", file)
    assert (result.exit_code, result.output) == (3, "vmm: interrupted\n")
    assert kernel.ran == []
    data = json.loads(file.read_text())
    assert data["early"] == "interrupted"
    if command == "bench":
        with pytest.raises(BenchFileError, match="nothing was measured: interrupted"):
            bench_of(file.read_bytes())
    else:
        assert parse_result(file.read_bytes(), "").exit_status == 3


def test_a_picture_of_an_older_run_is_gone(tmp_path: Path, waiting: None) -> None:
    picture = tmp_path / "old.svg"
    picture.write_text(OLD)
    assert vmm("bench", "--plot", picture).exit_code == 3
    assert not picture.exists()


def test_each_format_tells_of_it(tmp_path: Path, waiting: None) -> None:
    words = [word for each in FORMATS for word in ("--format", f"{each}:{tmp_path}/{each}")]
    assert vmm("check", *words).exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FORMATS)
    for path in tmp_path.iterdir():
        assert "interrupted" in path.read_text(), path.name


def test_json_for_standard_output_is_printed_once(waiting: None) -> None:
    result = vmm("run", "create-one", "--json")
    assert json.loads(result.stdout)["early"] == "interrupted"


def test_a_result_that_was_printed_is_not_printed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch).differ("create-one")
    result = vmm("check", "create-one", "--json")
    assert (result.exit_code, json.loads(result.stdout)["exit_status"]) == (1, 1)


@pytest.mark.parametrize(
    ("error", "status", "field"),
    [
        (NothingRan("no device"), 4, "obstacle"),
        (HostFailed("a full disk"), 3, "early"),
        (OSError(28, "No space left on device"), 3, "early"),
        (ZeroDivisionError(), 70, "error"),
    ],
)
def test_why_it_ended_is_in_the_result(
    error: Exception,
    status: int,
    field: str,
    monkeypatch: pytest.MonkeyPatch,
    file: Path,
) -> None:
    def fail(*_: object) -> None:
        raise error

    played(monkeypatch)
    monkeypatch.setattr("vmm.cli.check.look_at_host", fail)
    assert vmm("check", "--json", file).exit_code == status
    data = json.loads(file.read_text())
    assert data["exit_status"] == status
    said = str(error).removeprefix("[Errno 28] ") or "ZeroDivisionError"
    assert said in data[field]


def test_where_nobody_can_look_into_the_kernel_the_result_says_so(
    monkeypatch: pytest.MonkeyPatch, file: Path, tmp_path: Path
) -> None:
    from vmm.whitebox.errors import CannotLookError

    def fail(_: object) -> None:
        raise CannotLookError("no /proc/kcore")

    played(monkeypatch)
    monkeypatch.setattr("vmm.whitebox.box.opened", fail)
    assert vmm("check", "--white-box", "--json", file).exit_code == 4
    assert json.loads(file.read_text())["obstacle"] == "--white-box: no /proc/kcore"


@pytest.mark.parametrize("words", ["check", "run create-one", "bench", "check --list"])
def test_a_kernel_that_is_not_to_be_had_is_in_the_result(
    words: str, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    def fail(*_: object) -> None:
        raise LabError("the archive does not answer")

    monkeypatch.setattr("vmm.cli.lab.run.kernel_of", fail)
    result = vmm("lab", "run", "--", *words.split(), "--json", file)
    assert (result.exit_code, result.output) == (3, "vmm: the archive does not answer\n")
    if "--list" in words:
        assert not file.exists()
    else:
        assert json.loads(file.read_text())["early"] == "the archive does not answer"


def test_a_matrix_without_its_kernels_leaves_no_older_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise LabError("the archive does not answer")

    monkeypatch.setattr("vmm.cli.lab.matrix.kernel_of", fail)
    pages = [tmp_path / name for name in ("matrix.md", "matrix.html")]
    for page in pages:
        page.write_text(OLD)
    assert vmm("lab", "matrix", "--kernel", tmp_path, "--out", tmp_path).exit_code == 3
    assert [*tmp_path.iterdir()] == []


def test_what_a_machine_has_left_before_is_no_result_of_this_one(tmp_path: Path) -> None:
    finding = tmp_path / "findings" / "0-create"
    finding.mkdir(parents=True)
    for path in (tmp_path / "r.json", tmp_path / "h.jsonl", finding / "scenario.json"):
        path.write_text(OLD)
    lab_task("A", [], tmp_path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "words",
    ["check no-such-scenario", "run no-such-file.json", "judge no-such.jsonl", "bench --slots x"],
)
def test_what_cannot_be_used_leaves_a_file_as_it_was(
    words: str, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    played(monkeypatch)
    assert vmm(*words.split(), "--json", file).exit_code == 2
    assert file.read_text() == OLD


def test_an_interruption_does_not_overwrite_what_was_to_be_read(
    tmp_path: Path, waiting: None
) -> None:
    file = tmp_path / "scenario.json"
    file.write_text("{}")
    assert vmm("run", file, "--json", file).exit_code == 3
    assert file.read_text() == "{}"
    assert not_read([str(file), "other"], [None, 3, file]) == ["other"]


def test_what_is_new_is_not_written_again(tmp_path: Path) -> None:
    told: list[Early] = []
    files = [str(tmp_path / name) for name in ("a", "b")]
    tell = lambda early, left: told.append(early)  # noqa: E731
    for error in (HostFailed("later"), click.exceptions.Exit(1)):
        with suppress(type(error)), never_stale(files, tell):
            for name in files:
                Path(name).write_text(str(error))
            raise error
    with suppress(Unusable), never_stale([str(tmp_path / "c")], tell):
        raise Unusable("not executed")
    assert told == []


def test_what_the_disk_does_not_take_is_removed(file: Path) -> None:
    def tell(early: Early, left: Sequence[str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with suppress(HostFailed), never_stale([str(file)], tell):
        raise HostFailed("full")
    assert not file.exists()


INPUTS = ("debug_info", "against", "minimise", "modules", "corpus")
"""Options that name what is read."""

NO_RESULTS = ("transcript", "claims", "done", "out", "journal", "failed_histories")
"""A channel to another process, and folders in which files gather."""


def options_that_are_files() -> Iterator[tuple[Command, click.Option]]:
    for command in every_command(main):
        for option in command.params:
            is_path = isinstance(option, click.Option) and isinstance(option.type, click.Path)
            if is_path and option.name not in (*INPUTS, *NO_RESULTS):
                assert isinstance(command, Command)
                assert isinstance(option, click.Option)
                yield command, option


@pytest.mark.parametrize(
    ("command", "option"),
    [pytest.param(*each, id=f"{each[0].name}-{each[1].name}") for each in options_that_are_files()],
)
def test_whatever_a_command_writes_is_never_an_older_runs(
    command: Command, option: click.Option, file: Path
) -> None:
    arguments = [option.opts[-1], str(file), *["x" for each in command.params if each.required]]
    ctx = command.make_context("vmm", arguments, resilient_parsing=True)
    with pytest.raises(HostFailed), command.never_stale(ctx):
        raise HostFailed("a full disk")
    assert not file.exists() or OLD not in file.read_text()


@pytest.mark.parametrize("words", ["judge {}", "report {0} --html {0}", "matrix {0} --html {0}"])
def test_what_a_command_reads_stays(words: str, file: Path) -> None:
    name, *arguments = words.format(file).split()
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, Command)
    ctx = command.make_context(name, arguments, resilient_parsing=True)
    with pytest.raises(HostFailed), command.never_stale(ctx):
        raise HostFailed("a full disk")
    assert file.read_text() == OLD
