"""Judges what the lab's machines write, while scenarios run in them."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import click

from vmm.cli.check import RunOptions, begun
from vmm.cli.options.selection import selected
from vmm.cli.running.carrying import Carried, EarlyEnd, Finished, ended_at_once
from vmm.cli.running.history_files import history_files
from vmm.cli.running.host import Host, nothing
from vmm.cli.running.judging import Judge
from vmm.cli.running.transcript import BrokenError, LastPart, News, Opening, Reader, Skipped
from vmm.host.hostinfo import host_in_brief
from vmm.host.naming import NamedFile
from vmm.lab.log import Reports
from vmm.lab.run import Ending
from vmm.scenario.endings import HUNG, INTERRUPTED
from vmm.scenario.history import Header
from vmm.scenario.operations import Scenario
from vmm.scenario.selection import Selection
from vmm.verdict.result import Run
from vmm.verdict.statuses import PASSED

HISTORIES = "histories.jsonl"


class EnoughError(Exception):
    """The machines are no longer needed."""


@dataclass(slots=True)
class Part:
    """One machine: the ``file`` that it writes, and what is known of it."""

    file: Path
    reports: Reports = field(default_factory=Reports)
    carried: Carried | None = None
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = Reader(self.file)


class Judged:
    """What the machines have written so far, judged."""

    def __init__(
        self,
        parts: Sequence[Part],
        selection: Selection,
        wanted: RunOptions,
        logs: Path,
        stack: ExitStack,
    ) -> None:
        """Files that are opened are closed with the ``stack``."""
        self.parts = parts
        self._selection = selection
        self._wanted = wanted
        self._stack = stack
        self._logs = logs
        self._early = EarlyEnd()
        self._broken = ""
        self._check: _Check | None = None

    def go_on(self) -> None:
        """Judge what is new. Raises EnoughError if no more is wanted."""
        if self._broken:
            return
        for part in self.parts:
            try:
                for each in part.reader.news():
                    self._take(part, each)
            except BrokenError as error:
                self._broken = str(error)
        if self._check is not None:
            while self._check.judge.has_work:
                self._check.judge.work()
        if self._early.why:
            raise EnoughError

    def _take(self, part: Part, news: News) -> None:
        if isinstance(news, Opening):
            self._open(part, news)
            return
        if self._check is None:
            raise BrokenError("what the machine wrote has no beginning")
        match news:
            case LastPart(carried):
                part.carried = carried
            case Skipped(number, missing):
                self._check.note(number)
                self._check.judge.skip(number, missing)
            case Finished():
                self._check.note(news.index)
                self._check.judge.take(news)

    def _open(self, part: Part, opening: Opening) -> None:
        host = Host(opening.host, opening.features, opening.probe_failure)
        if self._check is None:
            self._check = self._begun(host)
        scenarios = self._check.scenarios
        if part.reader.headers or opening.scenarios != tuple(each.name for each in scenarios):
            raise BrokenError("the machine has other scenarios than this host")
        facts = host.info.in_brief()
        part.reader.headers = tuple(Header(each, host.features, facts) for each in scenarios)

    def _begun(self, host: Host) -> "_Check":
        """Begin the report of the run, on the first machine that has opened its transcript."""
        wanted = self._wanted
        scenarios = selected(host.features, self._selection)
        at_once = begun(scenarios, host, wanted)
        histories = wanted.histories
        if histories is None:
            histories = self._stack.enter_context(NamedFile(self._logs / HISTORIES, "wb"))
        _, failed = wanted.folders
        files = self._stack.enter_context(history_files(None, histories, failed))
        judge = Judge(
            scenarios,
            wanted.reports.reporter.done,
            self._early,
            files,
            wanted.max_differences,
            wanted.reports.show_steps,
        )
        return _Check(host, scenarios, judge, at_once, set(range(len(scenarios))))

    def whole(self, endings: Sequence[Ending], release: str) -> Run:
        """Return the run of machines that have ended.

        Raises click.exceptions.Exit if their command itself said why it did not begin.
        """
        with suppress(EnoughError):
            self.go_on()
        whys = (self._early.why, self._broken, *(ending.why for ending in endings))
        why = next(filter(None, whys), "")
        if self._check is None:
            if not why and endings[0].status != PASSED:
                raise click.exceptions.Exit(endings[0].status)
            host = Host(host_in_brief({"kernel": release}))
            self._wanted.reports.reporter.begin((), host.info)
            return nothing(host, early=why or "the machine's check has left nothing")
        if self._check.at_once is not None:
            return self._check.at_once
        for part, ending in zip(self.parts, endings, strict=True):
            if part.carried is None:
                early = why or f"the machine's check ended with status {ending.status}"
                part.carried = Carried((), (), 0.0, early)
                self._end_under_way(part, ending)
        self._check.judge.end()
        every = [part.carried for part in self.parts if part.carried is not None]
        return self._check.judge.run(self._check.host, _together(every, why))

    def _end_under_way(self, part: Part, ending: Ending) -> None:
        """If the scenario under way left no history, end it as its machine ended."""
        if not ending.why or self._check is None:
            return
        reason = INTERRUPTED if ending.why.startswith(INTERRUPTED) else f"{HUNG}{ending.why}"
        for index, header in enumerate(part.reader.headers):
            if header.scenario.name == ending.reports.under_way and index in self._check.left:
                self._check.judge.take(Finished(index, ended_at_once(header, reason), 0.0))


@dataclass(frozen=True, slots=True)
class _Check:
    """A check that has begun; ``at_once`` is its run if nothing can run.

    ``left`` has the indices of scenarios that no machine has reported yet.
    """

    host: Host
    scenarios: tuple[Scenario, ...]
    judge: Judge
    at_once: Run | None
    left: set[int]

    def note(self, index: int) -> None:
        """Note that a scenario ran or was skipped. Raises BrokenError if it was not expected."""
        if index not in self.left:
            raise BrokenError(f"what the machine wrote has no scenario {index}, or twice")
        self.left.remove(index)


def _together(every: Sequence[Carried], why: str) -> Carried:
    """Return how the machines, together, ran the scenarios that they share."""
    return Carried(
        next((each.cpus for each in every if each.cpus), ()),
        tuple(dict.fromkeys(text for each in every for text in each.weaknesses)),
        max(each.seconds for each in every),
        next((each.early for each in every if each.early), why),
        "".join(each.error for each in every),
    )
