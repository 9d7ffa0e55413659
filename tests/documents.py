"""The commands that documents show, and the output that they show for them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
_PROMPT = re.compile(r"^    \$ (.*)$")
_STATUS = re.compile(r"\s+# status (\d+)$")


@dataclass(frozen=True)
class Shown:
    """A command in a block, its exit status, and the lines of its output that are shown."""

    document: str
    line: int
    command: str
    status: int
    printed: str

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
