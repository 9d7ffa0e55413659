"""A check whose scenarios run in the lab's machines and are judged on the host.

Judging is slow on an emulated processor, and a machine that dies takes no verdict with it: another
one goes on with the rest. Several machines share the scenarios if the host has CPUs and memory for
them.
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
from vmm.cli.lab.machines import say, worst
from vmm.cli.lab.progress import Progress, interrupted, together
from vmm.cli.options.selection import curated, select
from vmm.cli.output.errors import usable
from vmm.cli.output.writing import temporary_folder
from vmm.cli.running.claims import done_text
from vmm.cli.running.transcript import Unpacked
from vmm.lab.log import Reports
from vmm.lab.run import Ending
from vmm.scenario.selection import Selection
from vmm.verdict.result import Run
from vmm.verdict.statuses import INCONCLUSIVE, PASSED

_OURS = ".vmm-lab-"
_CLAIMS = "claims"
_DONE = "done"
_INSIDE = {"--list", "--dask", "--help", "--journal", "--transcript"}
"""Options with which a check is not judged outside."""

_LEAST = 40
"""Scenarios that are worth a machine of their own."""

MORE_BOOTS = 6
"""How often another machine goes on where one was lost; a kernel may hang again and again."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command for a machine, and a function that gets the reports of its log.

    ``number`` is the machine's; ``out`` gets what it prints, which is passed on if it is None.
    """

    words: tuple[str, ...]
    told: Callable[[Reports], None]
    number: int = 0
    out: Callable[[bytes], None] | None = None


Boot = Callable[[Sequence[Command]], list[Ending]]
"""Runs commands side by side, each in a machine of its own."""


def is_judged_outside(words: Sequence[str]) -> bool:
    """Whether a command is a check that can be."""
    options = {word.partition("=")[0] for word in words}
    return words[0] == "check" and not _INSIDE & options


@dataclass(frozen=True, slots=True)
class Site:
    """Where a check is judged: ``release`` is the kernel's, ``logs`` the folder of the run.

    At most ``machines`` share its scenarios, in a folder if they ``share_files`` with this host.
    Where one is lost, another one goes on, ``more_boots`` times at most.
    """

    release: str
    logs: Path
    progress: Progress
    machines: int
    share_files: bool = True
    more_boots: int = MORE_BOOTS


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
        self._more_boots = place.more_boots

    def run(self, selection: Selection, wanted: RunOptions) -> Run:
        """Boot machines, judge what runs in them, and return the run.

        Raises click.exceptions.Exit if the command ends before anything begins.
        """
        with ExitStack() as stack:
            folder = _our_folder(stack)
            judged = Judged(selection, wanted, self._place.logs, stack)
            shares = self._shares(len(select(curated(), selection)))
            endings: list[Ending] = []
            while shares:
                new = self._booted(shares, judged, folder)
                endings += new
                shares = self._rest(judged, shares, new)
            self._place.progress.clear()
            self.ending = _whole(endings)
            return judged.whole(endings, self._place.release)

    def _booted(self, shares: "Sequence[_Share]", judged: Judged, folder: Path) -> list[Ending]:
        """Boot a machine for each share, and return how they ended."""
        first = len(judged.parts)
        commands = []
        with usable(folder):
            claims = folder / f"{_CLAIMS}-{first}"
            claims.mkdir()
            for number, share in enumerate(shares, first):
                done = folder / f"{_DONE}-{number}"
                done.write_text(done_text(share.done))
                part = Part(folder / str(number))
                judged.parts.append(part)
                words = (*share.options, "--done", str(done), *self._words)
                out = None
                if self._place.share_files:
                    words = ("--transcript", str(part.file), "--claims", str(claims), *words)
                else:
                    words, out = ("--transcript", "-", *words), Unpacked(part.file)
                told = partial(self._on_reports, judged, part, first)
                commands.append(Command(("check", *words), told, number, out))
        try:
            return self._boot(commands)
        except KeyboardInterrupt:
            return [interrupted(part.reports) for part in judged.parts[first:]]
        except EnoughError:
            return [Ending(PASSED, reports=part.reports) for part in judged.parts[first:]]

    def _shares(self, scenarios: int) -> "list[_Share]":
        """Return what each machine runs at first: what it claims, or its own share."""
        number = min(self._place.machines, math.ceil(scenarios / _LEAST))
        if self._place.share_files:
            return [_Share()] * number
        every = range(scenarios)
        return [_Share(frozenset(every) - set(every[first::number])) for first in range(number)]

    def _rest(
        self, judged: Judged, shares: "Sequence[_Share]", endings: Sequence[Ending]
    ) -> "list[_Share]":
        """Return what another machine is to run where some were lost: one share or none.

        Where several scenarios were under way in one of them, only these run, one at a time, which
        tells which of them it was; the others follow.
        """
        parts = judged.parts[-len(endings) :]
        suspects: set[int] = set()
        try:
            for part, ending in zip(parts, endings, strict=True):
                suspects |= judged.note_end(part, ending)
        except EnoughError:
            return []
        lost = [p for p, end in zip(parts, endings, strict=True) if p.carried is None and end.lost]
        is_next = bool(lost) or (shares[0].is_of_suspects and parts[0].carried is not None)
        if not (is_next and judged.left and self._more_boots) or judged.is_broken:
            return []
        self._more_boots -= 1
        for part in lost:
            part.is_followed = True
        self._place.progress.clear()
        for ending in endings:
            if ending.lost:
                say(ending.why)
        if suspects and not shares[0].is_of_suspects:
            names = judged.names_of(suspects)
            say(f"another machine runs what was under way, one at a time: {names}")
            return [_Share(judged.done | judged.left - suspects, is_of_suspects=True)]
        say(f"another machine goes on, scenarios left: {len(judged.left)}")
        return [_Share(judged.done)]

    def _on_reports(self, judged: Judged, part: Part, first: int, reports: Reports) -> None:
        progress = self._place.progress
        part.reports = reports
        progress.clear()
        judged.go_on()
        progress.tell(together([each.reports for each in judged.parts[first:]]))


@dataclass(frozen=True, slots=True)
class _Share:
    """What a machine runs: all but what is ``done``, and what others claim before it."""

    done: frozenset[int] = frozenset()
    is_of_suspects: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The options of `vmm check` for it."""
        return ("--jobs", "1") if self.is_of_suspects else ()


def _our_folder(stack: ExitStack) -> Path:
    """Make a folder, removed with the ``stack``, that machines may write to."""
    return Path(stack.enter_context(temporary_folder(_OURS, Path.cwd().resolve())))


def _whole(endings: Sequence[Ending]) -> Ending:
    """Return how all machines that share a check ended."""
    whys = dict.fromkeys(ending.why for ending in endings if ending.why)
    notes = dict.fromkeys(note for ending in endings for note in ending.notes)
    status = worst(ending.status for ending in endings)
    return Ending(status, "; ".join(whys), tuple(notes), together([e.reports for e in endings]))
