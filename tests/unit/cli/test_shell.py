"""What belongs to a shell: completion, the manual page, the version, misspelt commands."""

import fcntl
import os
import re
import select
import shutil
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vmm.cli.completion import SHELLS
from vmm.cli.main import COMMANDS, main


def completed(*words: str) -> list[str]:
    """Return what bash is offered in place of the last word."""
    environment = {
        "_VMM_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("vmm", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = CliRunner(env=environment).invoke(main, prog_name="vmm")
    return [line.removeprefix("plain,") for line in done.stdout.splitlines()]


_ASKED = {
    "bash": """
        COMP_WORDS=(vmm check zero-va-gpa); COMP_CWORD=2
        $(complete -p vmm | sed 's/.*-F \\([^ ]*\\) .*/\\1/') vmm zero-va-gpa
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "fish": "complete -C 'vmm check zero-va-gpa'",
    "zsh": """
        compadd() { name=${@[-1]}; print -r -l -- ${(P)name} }
        words=(vmm check zero-va-gpa); CURRENT=3
        _vmm_completion
    """,
}
_BEFORE = {"zsh": "compdef() { : }\n"}
"""What has each shell complete, where there is nobody to press a key."""


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_offers_what_this_program_says(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    script = CliRunner().invoke(main, ["completion", shell]).output
    done = subprocess.run(
        [shell, "-c", f"{_BEFORE.get(shell, '')}{script}\n{textwrap.dedent(_ASKED[shell])}"],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "zero-va-gpa-0-slot-0" in done.stdout.splitlines(), done.stdout + done.stderr


_SOURCED = {
    "bash": ("bash", "--norc", "-i", "source ./script"),
    "zsh": ("zsh", "-f", "-i", "autoload -U compinit; compinit -D; source ./script"),
    "fish": ("fish", "--no-config", "-i", "source ./script"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_file_of_a_format_is_completed_at_a_terminal(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "result-of-today.tap").touch()
    (tmp_path / "script").write_text(CliRunner().invoke(main, ["completion", shell]).output)
    *program, sourced = _SOURCED[shell]
    with terminal(program, tmp_path) as (press, shows):
        press(f'{sourced}; echo re""ady\n')
        shows("ready")
        press("vmm check --format=ktap:resu\t")
        shows("--format=ktap:result-of-today.tap ")


@contextmanager
def terminal(
    program: list[str], folder: Path
) -> Iterator[tuple[Callable[[str], object], Callable[[str], None]]]:
    """Run a program at a terminal: yield what presses keys, and what waits for a text."""
    ours, its = os.openpty()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TERM": "dumb",
        "PS1": "> ",
        "HOME": str(folder),
    }
    running = subprocess.Popen(
        program, cwd=folder, env=environment, stdin=its, stdout=its, stderr=its,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY),
    )  # fmt: skip
    os.close(its)
    seen = ""

    def shows(text: str) -> None:
        nonlocal seen
        end = time.monotonic() + 20
        while text not in seen:
            assert time.monotonic() < end, f"no {text!r} in {seen!r}"
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 4096).decode(errors="replace")
        seen = ""

    try:
        yield lambda keys: os.write(ours, keys.encode()), shows
    finally:
        running.kill()
        running.wait()
        os.close(ours)


def test_fish_says_all_that_an_option_does() -> None:
    if shutil.which("fish") is None:
        pytest.skip("needs fish")
    script = CliRunner().invoke(main, ["completion", "fish"]).output
    done = subprocess.run(
        ["fish", "-c", f"{script}\ncomplete -C 'vmm check --form'"],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "--format\tReport as text, ktap, " in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_a_script_that_asks_this_program(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert f"_VMM_COMPLETE={shell}_complete" in done.output


def test_bash_understands_its_script() -> None:
    script = CliRunner().invoke(main, ["completion", "bash"]).output
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("chec",), "check"),
        (("check", "create-one-p"), "create-one-page"),
        (("show", "create-one-p"), "create-one-page"),
        (("check", "--tag", "slo"), "slow"),
        (("check", "--hist"), "--histories"),
        (("check", "--format", "kt"), "ktap"),
        (("check", "--format", "ktap:re"), "file,ktap:re"),
        (("check", "--json", "re"), "file,re"),
        (("check", "--html", "re"), "file,re"),
        (("report", "re"), "file,re"),
        (("run", "create-one-p"), "create-one-page"),
        (("run", "./mine"), "file,./mine"),
        (("repro", "create-one-p"), "create-one-page"),
        (("lab", "run", "--kernel", "debian-5"), "debian-5.10"),
        (("lab", "run", "--kernel", "~/li"), "file,~/li"),
        (("lab", "run", "--kernel", "debian", "--", "chec"), "check"),
        (("lab", "run", "--kernel", "debian", "--", "check", "create-one-p"), "create-one-page"),
        (("lab", "run", "--kernel", "debian", "--", "check", "--tag", "slo"), "slow"),
        (("lab", "run", "--kernel", "debian", "--", "check", "--hist"), "--histories"),
    ],
)
def test_commands_scenarios_and_tags_are_completed(words: tuple[str, ...], offered: str) -> None:
    assert offered in completed(*words)


def test_the_manual_page_names_every_command_and_option() -> None:
    page = CliRunner().invoke(main, ["man"]).output
    for name in COMMANDS:
        assert f'.SS "vmm {name}' in page
    assert ".B \\-\\-histories FILE" in page


def options_of(
    command: click.Command, parent: click.Context | None = None, name: str = "vmm"
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each option of a command and of those inside: the command, and the option's help."""
    context = click.Context(command, parent, info_name=name)
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            record = option.get_help_record(context)
            assert record is not None
            yield context.command_path, record
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            inner = command.get_command(context, each)
            assert inner is not None
            yield from options_of(inner, context, each)


def test_every_option_says_what_it_does_and_takes() -> None:
    unsaid = []
    for command, (usage, text) in options_of(main):
        typed = re.search(r"INTEGER|FLOAT|TEXT|DIRECTORY|PATH|RANGE|FILENAME", usage)
        if typed or not text.partition("[")[0]:
            unsaid.append(f"{command} {usage}: {text}")
    assert unsaid == []


def test_the_manual_page_that_is_handed_out_is_this_one() -> None:
    page = Path(__file__).parents[3] / "docs/vmm.1"
    again = "made by `vmm man > docs/vmm.1`"
    assert page.read_text() == CliRunner().invoke(main, ["man"]).output, again


def test_the_manual_page_is_right_in_the_eyes_of_man() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is missing")
    page = CliRunner().invoke(main, ["man"]).output
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-wall"], input=page, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_the_version_is_that_of_the_package() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == "vmm 0.1.0\n"


def test_a_misspelt_command_is_answered_with_the_closest() -> None:
    done = CliRunner().invoke(main, ["chek"])
    assert done.exit_code == 2
    assert "No such command 'chek'. The closest: check." in done.output


def test_a_command_like_no_other_is_answered_without_a_guess() -> None:
    assert "closest" not in CliRunner().invoke(main, ["xyzzy"]).output
