"""The commands that documents show: each exists, takes these options, and names real scenarios."""

import fnmatch
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.documents import DOCUMENTS, ROOT
from vmm.catalogue import catalogue
from vmm.cli.main import main
from vmm.scenario.features import Features

EXAMPLES = [path for path in sorted((ROOT / "examples").rglob("*.*ml")) if path.is_file()]
SHOWN = re.compile(r"`((?:\./scripts/)?vmm [^`]+)`|^ +(?:\$ )?((?:\./scripts/)?vmm .+)$", re.M)
PLACEHOLDER = re.compile(r"^[\[(]|[\])|]$|\.\.\.|^[A-Z][A-Z_.-]*(\.\w+)?$")


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
