"""The commands that documents show: each exists, takes these options, and names real scenarios."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from tests.documented import ELSEWHERE, ELSEWHERE_JOBS, FORMS, NOWHERE, By, run_by
from tests.documents import (
    DOCUMENTS,
    EXAMPLES,
    IN_BLOCKS,
    IN_JOBS,
    IN_SENTENCES,
    PLACEHOLDER,
    ROOT,
    Shown,
    without_prompt,
)
from vmm.catalogue import catalogue
from vmm.cli.main import main
from vmm.scenario.features import Features

SHOWN = re.compile(r"`((?:\./scripts/)?vmm [^`]+)`|^ +(?:\$ )?((?:\./scripts/)?vmm .+)$", re.M)


def commands() -> Iterator[tuple[str, str]]:
    """Yield each document's name with each command in it; those with placeholders are left out."""
    for document in (*DOCUMENTS, *EXAMPLES):
        for match in SHOWN.finditer(document.read_text(encoding="utf-8")):
            text = " ".join((match.group(1) or match.group(2)).split())
            words = text.split()
            if len(words) > 1 and not any(PLACEHOLDER.search(word) for word in words[1:]):
                yield document.name, text


def parsed(text: str) -> click.Context:
    """Return the context of a command without running it; of a mere name, without arguments.

    Raises click.UsageError.
    """
    words = shlex.split(re.split(r" [|<>]|[|<>] | & |;", text)[0], comments=True)[1:]
    context = click.Context(main, info_name="vmm")
    while isinstance(context.command, click.Group) and words:
        if words[0] in ("--help", "--version"):
            return context
        name, command, words = context.command.resolve_command(context, words)
        assert command is not None
        if words and not isinstance(command, click.Group):
            return command.make_context(name, list(words), parent=context)
        context = click.Context(command, info_name=name, parent=context)
    return context


def test_the_documents_show_commands() -> None:
    assert {"README.md", "memslots.md"} <= {name for name, _ in commands()}


@pytest.mark.parametrize(("document", "text"), sorted(set(commands())))
def test_a_command_that_is_shown_can_be_given(document: str, text: str) -> None:
    context = parsed(text)
    names = [scenario.name for scenario in catalogue(Features())]
    for pattern in context.params.get("patterns", ()):
        assert fnmatch.filter(names, pattern), f"{document} names {pattern}, which is no scenario"


GENERATED = re.compile(r"<!-- made by .*: begin -->.*?<!-- end -->", re.S)
MADE_WHOLE = {"coverage.md"}


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=str)
def test_prose_takes_no_more_than_a_hundred_columns(document: Path) -> None:
    if document.name in MADE_WHOLE:
        return
    text = GENERATED.sub("", document.read_text(encoding="utf-8"))
    whole = ("|", "    ", "![")  # Tables, output and pictures cannot be wrapped.
    lines = (line for line in text.splitlines() if not line.startswith(whole))
    assert [line for line in lines if len(line) > 100 and " " in line.strip()] == []


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=str)
def test_what_a_document_links_to_is_there(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    here = [link for link in links if not link.startswith("http")]
    assert [link for link in here if not (document.parent / link).exists()] == []


def test_scripts_and_examples_take_no_more_than_a_hundred_columns() -> None:
    files = [each for each in (ROOT / "scripts").iterdir() if each.is_file()]
    lines = {
        f"{file.name}:{number}": line
        for file in (*files, *EXAMPLES, ROOT / "pyproject.toml")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
    }
    assert [place for place, line in lines.items() if len(line) > 100] == []


@pytest.mark.parametrize("wrong", ["vmm chek", "vmm check --no-such-option"])
def test_a_command_that_does_not_exist_is_found(wrong: str) -> None:
    with pytest.raises(click.UsageError):
        parsed(wrong)


ALL = [*IN_BLOCKS, *IN_SENTENCES, *IN_JOBS]


def test_every_command_in_a_block_has_a_prompt_so_that_it_is_run() -> None:
    found = {str(path.relative_to(ROOT)): [*without_prompt(path)] for path in DOCUMENTS}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_form_is_left_with_a_placeholder_that_nothing_fills() -> None:
    files = r"(FILE|RESULT|SCENARIO|OLD|A|B|TRACE|FOUND|DIR|NAME|JOURNAL|LANG)\b"
    for shown in ALL:
        by, command = run_by(shown)
        filled = by is By.FORM and shown.command not in FORMS
        words = re.findall(r"(?<![\w$-])[A-Z]{2,}\b", command) if filled else []
        assert [word for word in words if not re.match(files, word)] == [], f"{shown}: {command}"


def test_a_command_that_another_test_runs_names_one_that_exists() -> None:
    for test in {*ELSEWHERE.values(), *ELSEWHERE_JOBS.values()}:
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_every_command_of_a_job_is_run_by_another_test_or_has_a_reason() -> None:
    assert IN_JOBS
    for shown in IN_JOBS:
        assert run_by(shown)[0] in (By.TEST, By.NOBODY), f"{shown}: {shown.command}"


@pytest.mark.parametrize("what", [*ELSEWHERE, *ELSEWHERE_JOBS, *NOWHERE])
def test_what_is_run_elsewhere_is_shown_somewhere(what: str) -> None:
    assert any(re.search(what, shown.command) for shown in ALL)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_is_filled_is_shown_somewhere(form: str) -> None:
    assert form in {shown.command for shown in IN_SENTENCES}


def nobodys(program: str) -> list[Shown]:
    """Return the commands of a program that nothing runs."""
    found = [each for each in ALL if run_by(each)[0] is By.NOBODY]
    return [each for each in found if each.command.startswith(program)]


def test_apt_knows_the_packages_that_a_document_has_it_install() -> None:
    if shutil.which("apt-cache") is None or not known_to_apt("python3"):
        pytest.skip("apt has no lists here: apt-get update")
    packages = {word for shown in nobodys("apt install") for word in shown.command.split()[2:]}
    assert {"python3-venv", "qemu-system-x86"} <= packages
    assert sorted(package for package in packages if not known_to_apt(package)) == []


def known_to_apt(package: str) -> bool:
    done = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
    return done.returncode == 0 and bool(done.stdout)


def test_scripts_that_nothing_runs_take_the_options_that_they_are_given() -> None:
    for shown in nobodys("scripts/mutants"):
        words = shlex.split(shown.command)[1:]
        assert set(words) <= set(re.findall(r"--[\w-]+", mutants_help())), str(shown)


@cache
def mutants_help() -> str:
    command = [sys.executable, "-m", "tests.mutants.command", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout
