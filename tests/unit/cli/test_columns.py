"""Sixty columns suffice: what any command prints for people, and its help."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.text import Text

from tests.ideal import ideal_history
from tests.played import Kernel, named, played, vmm
from vmm.cli import demo, lab
from vmm.cli.main import COMMANDS, main
from vmm.cli.output.console import print_lines
from vmm.cli.output.width import width_of, wrapped
from vmm.cli.running.host import Host
from vmm.host.hostinfo import HostInfo
from vmm.scenario.codec import history_lines, scenario_text

COLUMNS = 60
TRACES = Path(__file__).parents[2] / "traces"
NO_KVM = HostInfo("6.99", "x86_64", "A CPU", False, "", "", "/dev/kvm: No such file", "get one")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return played(monkeypatch)


@pytest.fixture
def files(kernel: Kernel, tmp_path: Path) -> Path:
    """A folder with a file of every kind."""
    (tmp_path / "s.json").write_text(scenario_text(named("move-up")))
    right = history_lines(ideal_history(named("move-up")))
    (tmp_path / "h.jsonl").write_bytes(b"".join(right))
    kernel.differ("move-up")
    wrong = kernel.histories["move-up"]
    assert not isinstance(wrong, type)
    (tmp_path / "wrong.jsonl").write_bytes(b"".join(history_lines(wrong)))
    kernel.end("create-two", "hung: no end within 60 s", 3)
    vmm("check", "--json", tmp_path / "r.json")
    return tmp_path


def too_wide(text: str) -> list[str]:
    """Return the lines that are too wide, but those that have one long word."""
    return [
        line
        for line in text.splitlines()
        if len(line) > COLUMNS and len(line.split()) > 1 and not has_long_word(line)
    ]


def has_long_word(line: str) -> bool:
    """Whether a line is one word that nothing can break, such as a path, after its label."""
    indent = len(line) - len(line.split()[-1])
    return len(line.split()) <= 2 and indent <= COLUMNS // 2


def groups(prefix: tuple[str, ...], commands: dict[str, str]) -> Iterator[tuple[str, ...]]:
    yield from ((*prefix, name) for name in commands)


@pytest.mark.parametrize("command", [(), *groups((), COMMANDS), *groups(("lab",), lab.COMMANDS)])
def test_help(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*command, "--help"], terminal_width=COLUMNS)
    assert result.exit_code == 0
    assert too_wide(result.output) == []
    assert [line for line in result.output.splitlines() if len(line) > COLUMNS] == []


COMMANDS_SHOWN: tuple[tuple[str, ...], ...] = (
    ("check",),
    ("check", "-v"),
    ("check", "-q"),
    ("check", "--list"),
    ("check", "--all", "--list"),
    ("check", "mvoe-up-and-down-and-up-again-until-it-is-too-long-for-a-line"),
    ("run", "{}/s.json"),
    ("run", "mvoe-up"),
    ("judge", "{}/wrong.jsonl"),
    ("compare", "{}/h.jsonl", "{}/wrong.jsonl"),
    ("coverage", "{}/r.json"),
    ("coverage", "{}/h.jsonl"),
    ("replay", "--judge-only", str(TRACES / "qemu-q35-seabios.strace")),
    ("record", "--judge-only", "true"),
    ("info",),
    ("demo",),
    ("lab", "doctor"),
    ("report", "{}/h.jsonl", "--html", "{}/r.html"),
    ("matrix", "{}/h.jsonl", "--html", "{}/r.html"),
    ("fuzz", "--merge", "{}"),
    ("bench", "--against", "{}/r.json"),
)


@pytest.mark.parametrize("command", COMMANDS_SHOWN)
def test_output(
    kernel: Kernel, files: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "look_at_host", lambda: Host(NO_KVM))
    monkeypatch.chdir(files)
    result = vmm(*(word.format(files) for word in command), COLUMNS=str(COLUMNS))
    assert result.exit_code in (0, 1, 2, 3, 4), result.output
    assert result.output
    assert too_wide(result.stdout) == []
    assert too_wide(result.stderr) == []


def test_every_command_that_prints_for_people_is_among_them() -> None:
    for_programs = {"show", "repro", "completion", "man"}
    assert {command[0] for command in COMMANDS_SHOWN} == COMMANDS.keys() - for_programs


def test_lines_stay_whole_in_a_pipe(kernel: Kernel) -> None:
    assert any(len(line) > COLUMNS for line in vmm("info", COLUMNS="").stdout.splitlines())


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"COLUMNS": "60"}, 60),
        ({"COLUMNS": "0"}, None),
        ({"COLUMNS": "wide"}, None),
        ({}, None),
        ({"COLUMNS": "60", "LINES": "24"}, None),
    ],
)
def test_the_width(
    environment: dict[str, str], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)
    monkeypatch.setattr("os.isatty", lambda number: False)
    monkeypatch.setattr("os.get_terminal_size", refused)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert width_of(1) == expected


def refused(number: int) -> None:
    raise OSError


def test_a_long_word_is_indented_less_where_it_fits_only_so() -> None:
    output = io.StringIO()
    to = Console(file=output, width=9, force_terminal=True, color_system=None)
    print_lines(to, [Text("  one four-fiv six, a-word-without-end")])
    assert output.getvalue().split("\n")[:-1] == [
        "  one",
        " four-fiv",
        "    six,",
        "a-word-without-end",
    ]


def test_a_line_is_broken_between_words() -> None:
    assert wrapped("  one two three", 9) == "  one two\n    three"
    assert wrapped("a-very-long-word", 9) == "a-very-long-word"
    assert wrapped("as it is", None) == "as it is"


@pytest.mark.parametrize("words", ["judge {}/h.jsonl", "judge {}/h.jsonl --format text:{}/text"])
def test_no_columns_at_all_lose_nothing(files: Path, words: str) -> None:
    command = words.format(files, files).split()
    usual, none = (vmm(*command, COLUMNS=columns) for columns in ("", "0"))
    assert usual.output == none.output
    text = files / "text"
    assert "PASSED" in none.output + (text.read_text() if text.exists() else "")
