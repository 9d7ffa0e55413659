"""Keeps functions as small, and lines as short, as a reader has room for."""

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 50
MOST_LINES_OF_C = 60
MOST_PARAMETERS = 6
MOST_COLUMNS = 100
MIRRORS = {"set_user_memory_region2", "region", "mmio_for_ever"}
"""Functions whose parameters are those of a call that they stand for."""


def tracked(pattern: str) -> Iterator[Path]:
    """Yield the files of ours whose names match a pattern."""
    command = ["git", "-C", str(ROOT), "ls-files", pattern]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return (ROOT / name for name in names if (ROOT / name).is_file())


def is_command(function: ast.FunctionDef) -> bool:
    """Return whether click calls it: then each option is a parameter."""
    return any(".command(" in ast.unparse(each) for each in function.decorator_list)


def lines_of(function: ast.FunctionDef) -> int:
    """Return how many lines it has; of a command, without its options and its help."""
    assert function.end_lineno is not None
    if not is_command(function):
        return function.end_lineno - function.lineno + 1
    help_text = function.body[0]
    assert help_text.end_lineno is not None
    return function.end_lineno - help_text.end_lineno


def parameters_of(function: ast.FunctionDef) -> int:
    """Return how many parameters it has, without self."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


@dataclass(frozen=True, slots=True)
class Size:
    """How large a function is, and where it stands."""

    place: str
    name: str
    lines: int
    parameters: int
    is_command: bool


@cache
def sizes() -> tuple[Size, ...]:
    """Return the sizes of all functions: to parse all files takes a second."""
    return tuple(
        Size(
            f"{path.relative_to(ROOT)}: {function.name}",
            function.name,
            lines_of(function),
            parameters_of(function),
            is_command(function),
        )
        for path in tracked("*.py")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
    )


def test_functions_fit_on_a_screen() -> None:
    assert len(sizes()) > 1000
    assert {(each.place, each.lines) for each in sizes() if each.lines > MOST_LINES} == set()


def test_functions_have_few_parameters() -> None:
    many = {
        (each.place, each.parameters)
        for each in sizes()
        if each.parameters > MOST_PARAMETERS and not each.is_command and each.name not in MIRRORS
    }
    assert many == set()


@pytest.mark.parametrize("ending", ["c", "h", "S", "js", "css"])
def test_no_line_is_wider_than_a_terminal(ending: str) -> None:
    paths = list(tracked(f"*.{ending}"))
    assert paths
    wide = {
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line.expandtabs(8)) > MOST_COLUMNS
    }
    assert wide == set()


def test_functions_in_c_fit_on_a_screen() -> None:
    long = set()
    for path in tracked("*.c"):
        lines = path.read_text(encoding="utf-8").splitlines()
        braces = [at for at, line in enumerate(lines) if re.fullmatch(r"[{}]", line)]
        for begin, end in pairwise(braces):
            if lines[begin] == "{" and end - begin >= MOST_LINES_OF_C:
                long.add(f"{path.relative_to(ROOT)}:{begin}: {lines[begin - 1]}")
    assert long == set()
