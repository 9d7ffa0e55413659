"""A check whose scenarios run in the lab's machines and are judged on the host.

Judging is slow on an emulated processor, and a machine that dies takes no verdict with it. Several
machines share the scenarios if the host has CPUs and memory for them.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from vmm.cli.check import RunOptions, check
from vmm.cli.lab.judged import EnoughError, Judged, Part
from vmm.cli.lab.machines import worst
from vmm.cli.lab.progress import Progress, interrupted, together
from vmm.cli.options.selection import curated, select
from vmm.cli.output.errors import usable
from vmm.cli.output.writing import temporary_folder
from vmm.lab.log import Reports
from vmm.lab.machine import Backend
from vmm.lab.run import Ending
from vmm.scenario.selection import Selection
from vmm.verdict.result import Run
from vmm.verdict.statuses import INCONCLUSIVE, PASSED

_OURS = ".vmm-lab-"
_CLAIMS = "claims"
_INSIDE = {"--list", "--dask", "--help", "--journal", "--transcript"}
"""Options with which a check is not judged outside."""

_LEAST = 40
"""Scenarios that are worth a machine of their own."""

Command = tuple[tuple[str, ...], Callable[[Reports], None]]
"""A command for a machine, and a function that gets the reports of its log."""

Boot = Callable[[Sequence[Command]], list[Ending]]
"""Runs commands side by side, each in a machine of its own."""


def is_judged_outside(words: Sequence[str], backend: Backend) -> bool:
    """Whether a command is a check that can be; an emulator without shared folders cannot."""
    options = {word.partition("=")[0] for word in words}
    return words[0] == "check" and backend is not Backend.VMX and not _INSIDE & options


@dataclass(frozen=True, slots=True)
class Site:
    """Where a check is judged: ``release`` is the kernel's, ``logs`` the folder of the run.

    At most ``machines`` share its scenarios.
    """

    release: str
    logs: Path
    progress: Progress
    machines: int


def check_outside(words: Sequence[str], boot: Boot, place: Site) -> tuple[int, Ending]:
    """Run a check in machines and judge it here; return its status and how the machines ended.

    Raises click.ClickException as `vmm check` does, and LabError if nothing could be booted.
    """
    outside = _Outside(words, boot, place)
    ctx = check.make_context("vmm check", list(words[1:]), obj=outside.run)
    for option in ("white_box", "debug_info"):
        ctx.params[option] = None  # They are meant for the machine's kernel.
    try:
        with ctx:
            check.invoke(ctx)
    except click.exceptions.Exit as error:
        return error.exit_code, outside.ending
    raise AssertionError("a check ends with a status")


class _Outside:
    """A check whose scenarios run in machines."""

    def __init__(self, words: Sequence[str], boot: Boot, place: Site) -> None:
        self._words = tuple(words[1:])
        self._boot = boot
        self._place = place
        self.ending = Ending(INCONCLUSIVE)

    def run(self, selection: Selection, wanted: RunOptions) -> Run:
        """Boot machines, judge what runs in them, and return the run.

        Raises click.exceptions.Exit if the command ends before anything begins.
        """
        with ExitStack() as stack:
            folder = _our_folder(stack)
            parts = [Part(folder / str(number)) for number in range(self._number(selection))]
            judged = Judged(parts, selection, wanted, self._place.logs, stack)
            commands = [
                (self._command(part, folder / _CLAIMS), partial(self._on_reports, judged, part))
                for part in parts
            ]
            try:
                endings = self._boot(commands)
            except KeyboardInterrupt:
                endings = [interrupted(part.reports) for part in parts]
            except EnoughError:
                endings = [Ending(PASSED, reports=part.reports) for part in parts]
            self._place.progress.clear()
            self.ending = _whole(endings)
            return judged.whole(endings, self._place.release)

    def _number(self, selection: Selection) -> int:
        """Return how many machines share the scenarios."""
        scenarios = len(select(curated(), selection))
        return min(self._place.machines, math.ceil(scenarios / _LEAST))

    def _command(self, part: Part, claims: Path) -> tuple[str, ...]:
        ours = ("--transcript", str(part.file), "--claims", str(claims))
        return ("check", *ours, *self._words)

    def _on_reports(self, judged: Judged, part: Part, reports: Reports) -> None:
        progress = self._place.progress
        part.reports = reports
        progress.clear()
        judged.go_on()
        progress.tell(together([each.reports for each in judged.parts]))


def _our_folder(stack: ExitStack) -> Path:
    """Make a folder, removed with the ``stack``, that machines may write to.

    Raises HostFailed.
    """
    folder = Path(stack.enter_context(temporary_folder(_OURS, Path.cwd().resolve())))
    with usable(folder):
        (folder / _CLAIMS).mkdir()
    return folder


def _whole(endings: Sequence[Ending]) -> Ending:
    """Return how all machines that share a check ended."""
    whys = dict.fromkeys(ending.why for ending in endings if ending.why)
    notes = dict.fromkeys(note for ending in endings for note in ending.notes)
    status = worst(ending.status for ending in endings)
    return Ending(status, "; ".join(whys), tuple(notes), together([e.reports for e in endings]))
