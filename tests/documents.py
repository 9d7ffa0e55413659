"""The commands that documents and examples show, and the output that they show for them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from vmm.cli.main import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
EXAMPLES = [path for path in sorted((ROOT / "examples").rglob("*.*ml")) if path.is_file()]
JOBS = [path for path in (*EXAMPLES, ROOT / "examples/fleet/check.fmf") if path.name != "plan.fmf"]
PLACEHOLDER = re.compile(r"^[\[(]|[\])|]$|\.\.\.|^[A-Z][A-Z_.-]*(\.\w+)?$")
"""A word of a command that stands for others."""

_PROMPT = re.compile(r"^    \$ (.*)$")
_STATUS = re.compile(r"\s+# status (\d+)$")
_INLINE = re.compile(r"`([^`]+)`")
_PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S* )*(?:(?:\./)?scripts/[\w-]+|vmm|pipx?|apt|apt-get|pytest|git|make|cc|python3?|"
    r"mkdocs|vng|tmt|kubectl|dask|strace|qemu-system-\w+|man|modprobe|insmod|uv|for)(?: |$)"
)


@dataclass(frozen=True)
class Shown:
    """A command, its exit status, and the lines of its output that are shown."""

    document: str
    line: int
    command: str
    status: int = 0
    printed: str = ""

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def shown_in(document: Path) -> Iterator[Shown]:
    """Yield the commands in a document's blocks: those after a prompt."""
    name = str(document.relative_to(ROOT))
    command: tuple[int, str] | None = None
    printed: list[str] = []
    for number, line in enumerate([*document.read_text(encoding="utf-8").splitlines(), ""], 1):
        prompt = _PROMPT.match(line)
        if command is not None and (prompt or not line.startswith("    ")):
            at, text = command
            status = _STATUS.search(text)
            yield Shown(
                name,
                at,
                _STATUS.sub("", text),
                int(status.group(1)) if status else 0,
                "".join(f"{each}\n" for each in printed),
            )
            command, printed = None, []
        if prompt:
            command = number, prompt.group(1)
        elif command is not None:
            printed.append(line[4:])


def without_prompt(document: Path) -> Iterator[str]:
    """Yield the lines of blocks that look like commands, and are no output of one."""
    after_prompt = False
    for line in document.read_text(encoding="utf-8").splitlines():
        after_prompt = line.startswith("    ") and (after_prompt or bool(_PROMPT.match(line)))
        if line.startswith("    ") and not after_prompt and _PROGRAM.match(line.strip()):
            yield line


def mentioned_in(document: Path) -> Iterator[Shown]:
    """Yield the commands within a document's sentences and tables; mere names are none."""
    lines = document.read_text(encoding="utf-8").splitlines()
    text = "\n".join("" if line.startswith("    ") else line for line in lines)
    for match in _INLINE.finditer(text):
        command = " ".join(match.group(1).split())
        if _PROGRAM.match(command) and not is_name(command):
            number = text.count("\n", 0, match.start()) + 1
            yield Shown(str(document.relative_to(ROOT)), number, command)


def is_name(command: str) -> bool:
    """Tell whether this only names a program, or a command of ours."""
    program, *words = command.split()
    context = click.Context(main, info_name="vmm")
    for word in words:
        group = context.command
        if not program.endswith("vmm") or not isinstance(group, click.Group):
            return False
        found = group.get_command(context, word)
        if found is None:
            return False
        context = click.Context(found, info_name=word, parent=context)
    return True


def in_jobs() -> Iterator[Shown]:
    """Yield the commands that the examples give to other engines."""
    for path in JOBS:
        for command in _commands(yaml.safe_load(path.read_text(encoding="utf-8"))):
            yield Shown(str(path.relative_to(ROOT)), 1, command)


_KEYS_OF_COMMANDS = {"run", "script", "steps", "test", "args"}


def _commands(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, str):
        if key in _KEYS_OF_COMMANDS:
            yield node.strip()
    elif isinstance(node, list):
        for each in node:
            yield from _commands(each, key)
    elif isinstance(node, dict):
        for name, each in node.items():
            yield from _commands(each, name)


IN_BLOCKS = [shown for document in DOCUMENTS for shown in shown_in(document)]
IN_SENTENCES = [shown for document in DOCUMENTS for shown in mentioned_in(document)]
IN_JOBS = [*in_jobs()]
