"""The progress of a run of many machines: what will run, how long it takes, and how far it is."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vmm.cli.lab.machines import say
from vmm.cli.lab.progress import Progress
from vmm.lab.cells import Cell, Task
from vmm.lab.machine import Backend
from vmm.verdict.statuses import DIFFERS, PASSED

_COSTS: dict[Backend, tuple[float, float]] = {
    Backend.SVM: (15, 0.2),
    Backend.VMX: (60, 1.0),
    Backend.KVM: (5, 0.05),
}
"""Seconds until the first scenario, and for each scenario, on an idle host (docs/lab.md)."""

_TAIL = 4096
_OURS = ("lab: ", "vmm: ")
_STATUS = re.compile(r"lab: status \d")
_SAID = re.compile(rb"lab: (\d+ of \d+) scenarios")


def estimate_s(cell: Cell, scenarios: int) -> float:
    """Return roughly how long a cell takes on an idle host."""
    start, each = _COSTS[cell.backend]
    return start + each * scenarios


def say_what_runs(cells: Sequence[Cell], scenarios: int, at_once: int, out: Path) -> None:
    """Print what will run, and how long it takes: a line for all of it, and one for each cell."""
    each = [estimate_s(cell, scenarios) for cell in cells]
    whole = max(sum(each) / at_once, *each, 0)
    number = f"{scenarios} scenario" + "s" * (scenarios != 1)
    what = f"{len(cells)} cells, {number} each, {at_once} at a time"
    say(f"{what}: {about(whole)} where nothing else is under way; results: {out}")
    width = max(len(cell.name) for cell in cells)
    for cell, seconds in zip(cells, each, strict=True):
        say(f"  {cell.name:<{width}}  {about(seconds)}")


def about(seconds: float) -> str:
    """Return a duration as the text of an estimate."""
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {seconds / 3600:.1f} h"


class Watched:
    """The machines of a run, with those that have ended and those under way."""

    def __init__(self, machines: str) -> None:
        """Take how many there are, such as "4 cells"."""
        self._machines = machines
        self._progress = Progress()
        self.statuses: dict[str, int] = {}

    def look(self, under_way: Sequence[Task]) -> None:
        """Show how far the machines under way are."""
        said = ", ".join(f"{task.label} {how_far(task)}" for task in under_way)
        ended = f"{len(self.statuses)} of {self._machines}"
        self._progress.line(f"{ended} after {self._progress.seconds} s; {said}")

    def ended(self, task: Task, status: int, seconds: float) -> None:
        """Print that a machine has ended."""
        self._progress.clear()
        self.statuses[task.label] = status
        output = task.folder / "output.txt"
        say(f"{task.label}: status {status} after {seconds:.0f} s ({output})")
        if status not in (PASSED, DIFFERS) and (why := _why(output)):
            say(f"  {why}")

    def end(self) -> None:
        """Erase the progress line."""
        self._progress.clear()


def how_far(task: Task) -> str:
    """Return how far a machine is, according to the end of its output."""
    found = _SAID.findall(_end_of(task.folder / "output.txt"))
    return found[-1].decode() if found else "boots"


def _why(output: Path) -> str:
    """Return what a machine printed before the line with its status."""
    lines = _end_of(output).decode(errors="replace").splitlines()
    said = [line for line in lines if line.startswith(_OURS) and not _STATUS.match(line)]
    return said[-1].partition(": ")[2] if said else ""


def _end_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read()
    except FileNotFoundError:
        return b""
