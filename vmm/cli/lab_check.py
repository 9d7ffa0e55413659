"""A check whose scenarios run in the lab's machine, and are judged outside of it.

An emulated processor takes long to judge, and a machine that is lost takes no verdict with it.
"""

import secrets
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import click

from vmm.cli.carrying import Carried, EarlyEnd, Ran, ended_at_once
from vmm.cli.check import Wanting, begun, check, nothing
from vmm.cli.execution import whole_run
from vmm.cli.history_files import HistoryFiles, history_files
from vmm.cli.host import Host
from vmm.cli.judging import Judge
from vmm.cli.lab_progress import Progress
from vmm.cli.selection import selected
from vmm.cli.transcript import BrokenError, Closing, Opening, Part, Reader, Skipped
from vmm.host.hostinfo import host_in_brief
from vmm.host.naming import NamedFile
from vmm.lab.log import Reports
from vmm.lab.machine import Backend
from vmm.lab.run import Ending
from vmm.scenario.endings import HUNG
from vmm.scenario.history import INTERRUPTED, Header
from vmm.scenario.operations import Scenario
from vmm.scenario.selection import Selection
from vmm.verdict.result import Run
from vmm.verdict.statuses import INCONCLUSIVE, PASSED

HISTORIES = "histories.jsonl"
_OURS = ".vmm-lab-"
_INSIDE = {"--list", "--dask", "--help", "--journal", "--transcript"}
"""What makes a check one that is not judged outside."""

Boot = Callable[[tuple[str, ...], Callable[[Reports], None]], Ending]
"""Runs a command in a machine, and lets the second argument hear what the log says."""


def is_judged_outside(words: tuple[str, ...], backend: Backend) -> bool:
    """Whether a command is a check that can be; an emulator without shares has none to write to."""
    options = {word.partition("=")[0] for word in words}
    return words[0] == "check" and backend is not Backend.VMX and not _INSIDE & options


class _EnoughError(Exception):
    """The machine is not needed any more."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a check outside works: ``release`` is the kernel's, ``logs`` the folder of the run."""

    release: str
    logs: Path
    progress: Progress


def check_outside(words: tuple[str, ...], boot: Boot, place: Place) -> tuple[int, Ending]:
    """Run a check in a machine and judge it here; return its status, and how the machine ended.

    Raises click.ClickException as `vmm check` does, and LabError where nothing could be booted.
    """
    outside = _Outside(words, boot, place)
    ctx = check.make_context("vmm check", list(words[1:]), obj=outside.run)
    for option in ("white_box", "debug_info"):
        ctx.params[option] = None  # The machine's kernel is meant.
    try:
        with ctx:
            check.invoke(ctx)
    except click.exceptions.Exit as error:
        return error.exit_code, outside.ending
    raise AssertionError("a check ends with a status")


class _Outside:
    """One check: the source of scenarios that run in a machine."""

    def __init__(self, words: tuple[str, ...], boot: Boot, place: Place) -> None:
        self._words = words
        self._boot = boot
        self._place = place
        self.ending = Ending(INCONCLUSIVE)

    def run(self, selection: Selection, wanted: Wanting) -> Run:
        """Boot the machine, judge what runs in it, and return that.

        Raises click.exceptions.Exit where the command ends by itself before anything begins.
        """
        progress = self._place.progress
        file = Path.cwd().resolve() / f"{_OURS}{secrets.token_hex(8)}"
        words = (self._words[0], "--transcript", str(file), *self._words[1:])
        with ExitStack() as stack:
            stack.callback(file.unlink, missing_ok=True)
            judged = _Judged(file, selection, wanted, stack, self._place.logs)

            def heard(reports: Reports) -> None:
                progress.clear()
                judged.go_on()
                progress.tell(reports)

            try:
                self.ending = self._boot(words, heard)
            except KeyboardInterrupt:
                self.ending = progress.interrupted()
            except _EnoughError:
                self.ending = Ending(PASSED)
            progress.clear()
            return judged.whole(self.ending, self._place.release)


class _Judged:
    """What has come from the machine, and was judged."""

    def __init__(
        self, file: Path, selection: Selection, wanted: Wanting, stack: ExitStack, logs: Path
    ) -> None:
        self._reader = Reader(file)
        self._selection = selection
        self._wanted = wanted
        self._stack = stack
        self._logs = logs
        self._early = EarlyEnd()
        self._files = HistoryFiles()
        self._broken = ""
        self._host: Host | None = None
        self._scenarios: tuple[Scenario, ...] = ()
        self._judge = Judge((), wanted.told.reporter.done, self._early)
        self._carried: Carried | None = None
        self._names: set[str] = set()
        self._at_once: Run | None = None

    def go_on(self) -> None:
        """Judge what is new. Raises _EnoughError where no more is wanted."""
        if self._broken:
            return
        try:
            for part in self._reader.news():
                self._take(part)
        except BrokenError as error:
            self._broken = str(error)
        while self._judge.has_work:
            self._judge.work()
        if self._early.why:
            raise _EnoughError

    def _take(self, part: Part) -> None:
        match part:
            case Opening():
                self._open(part)
            case Skipped(index, missing):
                self._names.add(self._scenarios[index].name)
                self._judge.skip(index, missing)
            case Ran():
                self._names.add(part.record.header.scenario.name)
                self._judge.take(part)
            case Closing(carried):
                self._carried = carried

    def _open(self, opening: Opening) -> None:
        wanted = self._wanted
        host = self._host = Host(opening.host, opening.features, opening.in_vain)
        scenarios = self._scenarios = selected(host.features, self._selection)
        if tuple(each.name for each in scenarios) != opening.scenarios:
            raise BrokenError("the machine has other scenarios than this host")
        facts = host.info.in_brief()
        self._reader.headers = tuple(Header(each, host.features, facts) for each in scenarios)
        self._at_once = begun(scenarios, host, wanted)
        histories = wanted.histories
        if histories is None:
            histories = self._stack.enter_context(NamedFile(self._logs / HISTORIES, "wb"))
        _, failed = wanted.folders
        self._files = self._stack.enter_context(history_files(None, histories, failed))
        self._judge = Judge(
            scenarios,
            wanted.told.reporter.done,
            self._early,
            self._files,
            wanted.max_differences,
            wanted.told.show_steps,
        )

    def whole(self, ending: Ending, release: str) -> Run:
        """Return the run of a machine that has ended."""
        with suppress(_EnoughError):
            self.go_on()
        why = self._early.why or self._broken or ending.why
        if self._host is None:
            if not why and ending.status != PASSED:  # The command has said it itself.
                raise click.exceptions.Exit(ending.status)
            why = why or "the machine's check has left nothing"
            host = Host(host_in_brief({"kernel": release}))
            self._wanted.told.reporter.begin((), host.info)
            return nothing(host, early=why)
        if self._at_once is not None:
            return self._at_once
        if self._carried is None:
            self._carried = Carried((), (), 0.0, why or f"it ended with status {ending.status}")
            self._end_under_way(ending)
        early = self._carried.early or why
        self._judge.end()
        carried = replace(self._carried, early=early)
        return whole_run(self._scenarios, self._host, self._judge, carried, self._files)

    def _end_under_way(self, ending: Ending) -> None:
        """Let the scenario that began last end as the machine did, if it has left nothing."""
        name = ending.reports.under_way
        if not ending.why or name in self._names:
            return
        reason = INTERRUPTED if ending.why.startswith(INTERRUPTED) else f"{HUNG}{ending.why}"
        for index, header in enumerate(self._reader.headers):
            if header.scenario.name == name:
                self._judge.take(Ran(index, ended_at_once(header, reason), 0.0))
