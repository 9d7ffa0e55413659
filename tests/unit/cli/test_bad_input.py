"""Files that are newer, broken, missing or cannot be written: one line, status 2, nothing half."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.ideal import ideal_history
from tests.played import Kernel, named, played, vmm
from tests.traced import KVM, region
from vmm.cli.lab import diff as lab_diff, matrix as lab_matrix
from vmm.cli.main import main
from vmm.cli.options.paths import FilePath
from vmm.scenario.codec import history_lines, scenario_text

NEWER = "format 9 is not known here (this reads format 1): use the version of this program"
RESULTS = ("report {} --html out.html", "matrix {} --html out.html", "coverage {}")
HISTORIES = ("judge {}", "judge {} --html out.html", "compare {} {}", "repro {}")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder to start in, on a kernel that is played."""
    played(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(folder: Path, *words: str) -> str:
    """Run a command that has to fail with one line and to leave the folder as it was."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = vmm(*(words[0].split() if len(words) == 1 else words))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("vmm: ")
    assert result.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return result.stderr


@pytest.mark.parametrize("command", [*RESULTS, "bench --against {}"])
def test_a_result_of_a_newer_format(folder: Path, command: str) -> None:
    (folder / "r.json").write_text('{"format": 9, "of": "the future"}')
    line = refused(folder, command.format("r.json"))
    assert "format 9 is n" in line
    assert "this program" in line


@pytest.mark.parametrize("command", [*RESULTS, "bench --against {}"])
@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"format": 1}', '{"format": "1"}', "\xff"])
def test_a_broken_result(folder: Path, command: str, text: str) -> None:
    (folder / "r.json").write_text(text, encoding="latin-1")
    assert refused(folder, command.format("r.json")).startswith("vmm: r.json: ")


@pytest.mark.parametrize("command", HISTORIES)
def test_a_history_of_a_newer_format(folder: Path, command: str) -> None:
    (folder / "h.jsonl").write_text('{"type":"history","format":9}\n')
    assert NEWER in refused(folder, command.format("h.jsonl", "h.jsonl"))


@pytest.mark.parametrize("command", HISTORIES)
@pytest.mark.parametrize("text", ["", "{", '{"type":"history"}\n', '{"type":"history","format":1'])
def test_a_broken_history(folder: Path, command: str, text: str) -> None:
    (folder / "h.jsonl").write_text(text)
    assert refused(folder, command.format("h.jsonl", "h.jsonl")).startswith("vmm: h.jsonl")


@pytest.mark.parametrize(
    "command", [*RESULTS, "bench --against {}", *HISTORIES, "run {}", "replay --judge-only {}"]
)
@pytest.mark.parametrize("what", ["empty", "absent"])
def test_an_empty_folder_and_a_file_that_is_not_there(
    folder: Path, command: str, what: str
) -> None:
    (folder / "empty").mkdir()
    name = {"empty": "empty", "absent": "absent.json"}[what]
    assert f"vmm: {name}" in refused(folder, command.format(name, name))


SCENARIOS = ("run {}", "repro {}", "fuzz --minimise {}", "replay --judge-only {}")


@pytest.mark.parametrize("command", [*RESULTS, "bench --against {}", *HISTORIES, *SCENARIOS])
@pytest.mark.parametrize("text", ["", "\n"])
@pytest.mark.parametrize("name", ["file.json", "file.jsonl"])
def test_an_empty_file_is_called_so_by_every_command(
    folder: Path, command: str, text: str, name: str
) -> None:
    (folder / name).write_text(text)
    assert refused(folder, command.format(name, name)) == f"vmm: {name}: empty\n"


@pytest.mark.parametrize("command", ["run -", "repro -"])
def test_an_empty_standard_input_is_called_so(folder: Path, command: str) -> None:
    result = vmm(*command.split(), stdin="\n")
    assert (result.exit_code, result.stderr) == (2, "vmm: standard input: empty\n")


KERNELS = (
    "lab run --kernel {} -- info",
    "lab diff --kernel {} --kernel {}",
    "lab matrix --kernel {}",
)
BAD_KERNELS = ("", "empty", "absent", "rubbish", "nothing", "pipe", "loop", "/dev/null")


def bad_things(folder: Path) -> None:
    """Put into a folder what can be named where a file is wanted."""
    (folder / "empty").mkdir()
    (folder / "rubbish").write_bytes(bytes(range(256)) * 8)
    (folder / "nothing").touch()
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")


@pytest.mark.parametrize("command", KERNELS)
@pytest.mark.parametrize("name", BAD_KERNELS)
def test_what_is_no_kernel(folder: Path, command: str, name: str) -> None:
    bad_things(folder)
    words = [name if word == "{}" else word for word in command.split()]
    refused(folder, *words)


@pytest.mark.parametrize("command", ["check", "check --white-box", "run move-up"])
@pytest.mark.parametrize("name", ["absent", "empty", "rubbish", "nothing", "pipe", "/dev/null"])
def test_what_holds_no_debug_information(folder: Path, command: str, name: str) -> None:
    bad_things(folder)
    refused(folder, *command.split(), "--debug-info", name)


@pytest.mark.parametrize("names", ["empty", "absent", "rubbish", "broken", "empty absent broken"])
def test_folders_in_which_nothing_is_a_finding(folder: Path, names: str) -> None:
    bad_things(folder)
    (folder / "broken" / "a").mkdir(parents=True)
    (folder / "broken" / "a" / "scenario.json").write_text("{")
    line = refused(folder, "fuzz", "--merge", *names.split(), "--out", "merged")
    assert all(name in line for name in names.split())
    assert not (folder / "merged").exists()


@pytest.mark.parametrize(
    "command",
    [
        "check no-such-name --json old",
        "check no-such-name --histories old",
        "check --json old --html absent/page.html",
        "judge r.json --html old",
        "judge broken.jsonl --html old",
        "run r.json --html old",
        "run no-such-name --json old",
        "run move-up --debug-info r.json --html old",
        "check no-such-name --histories new",
        "compare h.jsonl broken.jsonl",
    ],
)
def test_what_is_there_stays_where_nothing_runs(folder: Path, command: str) -> None:
    vmm("check", "--json", "r.json")
    (folder / "old").write_text("what was there")
    lines = [*history_lines(ideal_history(named("move-up")))]
    (folder / "h.jsonl").write_bytes(b"".join(lines))
    (folder / "broken.jsonl").write_bytes(b"".join([*lines[:3], b"{\n", *lines[4:]]))
    refused(folder, command)


def test_what_is_there_is_gone_when_a_run_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = folder / "old"
    old.write_text("an old result")
    there: list[bool] = []
    monkeypatch.setattr(
        "vmm.cli.output.console.LiveProgress.begin", lambda *_: there.append(old.exists())
    )
    vmm("check", "--json", "old")
    assert there
    assert not any(there)


WRITING = (
    "report r.json --html {}",
    "matrix r.json --html {}",
    "check --html {}",
    "check --json {}",
    "check --histories {}",
    "check --failed-histories {}",
    "run move-up --history {}",
    "run move-up --html {}",
    "judge h.jsonl --html {}",
    "repro move-up -o {}",
    "bench --json {}",
    "bench --plot {}.svg",
    "replay --judge-only t.log --scenario {}",
    "check --journal {}",
    "check --transcript {}",
    "check --format junit:{}",
    "run move-up --json {}",
    "run move-up --format ktap:{}",
    "judge h.jsonl --json {}",
    "judge h.jsonl --format tap13:{}",
    "record -o {} true",
    "fuzz --out {}",
    "fuzz --corpus {}",
    "demo --svg {}",
    "demo --record {}",
    "lab matrix --out {}",
    "lab diff --kernel debian --kernel debian-6.1 --out {}",
)
MAKE_FOLDERS = ("--failed-histories", "--journal", "--out", "--corpus")
READ = ("--claims", "--done", "--debug-info", "--against", "--minimise", "--modules")


def test_every_option_that_names_what_is_written_is_among_them() -> None:
    for words, command in commands(main, click.Context(main)):
        for each in command.params:
            if not isinstance(each, click.Option) or each.opts[0] in READ:
                continue
            if isinstance(each.type, FilePath) or each.opts[0] == "--format":
                wanted = re.compile(rf"{words} .*{each.opts[0]} \S*{{}}")
                assert any(map(wanted.match, WRITING)), f"{words} {each.opts[0]}"


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            inner = click.Context(command, parent=context)
            yield from ((f"{name} {words}", each) for words, each in commands(command, inner))
        elif command is not None:
            yield name, command


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("place", ["absent/out", "r.json/out", "/sys/out"])
def test_a_path_that_cannot_be_written(
    folder: Path, command: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = played(monkeypatch)
    monkeypatch.setattr("vmm.cli.bench.look_at_host", kernel.look_at_host)
    monkeypatch.setattr("vmm.cli.bench._measured", never)
    vmm("check", "--json", "r.json")
    kernel.ran.clear()
    (folder / "t.log").write_text(f"{KVM}\n{region(0)}\n")
    (folder / "h.jsonl").write_bytes(b"".join(history_lines(ideal_history(named("move-up")))))
    for each in (lab_diff, lab_matrix):
        monkeypatch.setattr(each, "kernel_of", lambda *_: None)
        monkeypatch.setattr(each, "run_all", never)
    if place.startswith("absent") and any(option in command for option in MAKE_FOLDERS):
        pytest.skip("makes the folder")
    assert place.rpartition("/")[0] in refused(folder, command.format(place))
    assert kernel.ran == []


@pytest.mark.parametrize(
    "command",
    [
        "report r.json --html r.json",
        "matrix r.json --html ./r.json",
        "matrix . --html r.json",
        "judge h.jsonl --html h.jsonl",
        "judge h.jsonl --format ktap:link",
        "run s.json --json s.json",
        "run s.json --history s.json",
        "repro s.json -o s.json",
        "replay --judge-only t.log --scenario t.log",
    ],
)
def test_what_is_read_is_not_written_over(folder: Path, command: str) -> None:
    vmm("check", "--json", "r.json")
    (folder / "s.json").write_text(scenario_text(named("move-up")))
    (folder / "h.jsonl").write_bytes(b"".join(history_lines(ideal_history(named("move-up")))))
    (folder / "link").symlink_to("h.jsonl")
    (folder / "t.log").write_text(f"{KVM}\n{region(0)}\n")
    assert "this is what is read" in refused(folder, command)


@pytest.mark.parametrize(
    "command", ["run move-up --history r --json r", "bench --json r.svg --plot ./r.svg"]
)
def test_two_outputs_do_not_go_to_one_file(folder: Path, command: str) -> None:
    assert "two outputs go to" in refused(folder, command)


def test_a_full_disk_is_the_hosts(folder: Path) -> None:
    for command in ("check --json /dev/full", "check --format ktap:/dev/full"):
        result = vmm(*command.split())
        assert result.exit_code == 3
        assert result.stderr.endswith("vmm: the host: /dev/full: No space left on device\n")


def never(*_: object, **__: object) -> None:
    raise AssertionError("measured, though nothing can be written")


def test_no_older_page_is_left_where_writing_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vmm("check", "--json", "r.json")
    (folder / "page.html").write_text("what was there")

    def failing(result: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vmm.report.html.html_text", failing)
    assert vmm("report", "r.json", "--html", "page.html").exit_code == 3
    assert json.loads((folder / "r.json").read_text())["format"] == 1
    assert [path.name for path in folder.iterdir()] == ["r.json"]


def test_the_played_kernel_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Kernel = played(monkeypatch)
    assert vmm("check", "-q").exit_code == 0
    assert kernel.ran


@pytest.mark.parametrize(
    "command",
    [
        "chek",
        "--nonsense",
        "check --nonsense",
        "check --format xml",
        "check --histories .",
        "check --failed-histories there",
        "check --jobs 0",
        "repro move-up -o .",
        "run move-up --history .",
        "fuzz --out there",
        "fuzz --shard 4/3",
        "report",
        "coverage --json --markdown",
        "lab nonsense",
        "lab run",
    ],
)
def test_arguments_that_cannot_be_used(folder: Path, command: str) -> None:
    (folder / "there").touch()
    assert "--help says more" in refused(folder, command)


@pytest.mark.parametrize(
    "command",
    [
        *RESULTS,
        *HISTORIES,
        "run {}",
        "run ./{}/x.json",
        "replay --judge-only {}",
        "check --histories {}",
        "check --json {}",
        "check --journal {}",
        "check --failed-histories {}",
        "fuzz --merge {} --out merged",
        "fuzz --minimise {}",
        "bench --against {}",
        "lab run --kernel {} -- info",
        "lab run --kernel . --modules {} -- info",
    ],
)
def test_a_name_that_no_file_system_takes(folder: Path, command: str) -> None:
    refused(folder, command.format(*["x" * 300] * 2))


@pytest.mark.parametrize("name", ["/dev/full", "/dev/null", "pipe"])
def test_a_history_is_written_to_what_can_be_read_again(folder: Path, name: str) -> None:
    os.mkfifo(folder / "pipe")
    assert "not a file" in refused(folder, f"run move-up --history {name}")


def test_no_command_at_all_is_answered_with_help(folder: Path) -> None:
    assert vmm().output.startswith("Usage: vmm ")
    assert vmm("lab").output.startswith("Usage: vmm lab ")


@pytest.mark.parametrize(
    "words",
    [
        *(("check", option) for option in ("--failed-histories", "--journal", "--histories")),
        *(("fuzz", option) for option in ("--out", "--minimise")),
        *(("bench", option) for option in ("--json", "--plot", "--against")),
        ("run", "move-up", "--history"),
        ("repro", "move-up", "-o"),
        ("record", "-o"),
        *((command,) for command in ("judge", "report", "coverage", "matrix", "compare", "replay")),
    ],
)
def test_an_empty_name_is_not_the_current_folder(folder: Path, words: tuple[str, ...]) -> None:
    (folder / "h.jsonl").write_bytes(b"".join(history_lines(ideal_history(named("move-up")))))
    assert "the name of the file is missing" in refused(folder, *words, "")
    assert "no scenario is named ''" in refused(folder, "run", "")
