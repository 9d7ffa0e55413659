"""Judges what the lab's machines write, while scenarios run in them."""

from collections.abc import Collection, Sequence
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
from vmm.host.health import Problem
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
    """One machine: the ``file`` that it writes, and what is known of it.

    ``is_followed`` says that another machine goes on where this one was lost.
    """

    file: Path
    reports: Reports = field(default_factory=Reports)
    carried: Carried | None = None
    is_followed: bool = False
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = Reader(self.file)


class Judged:
    """What the machines have written so far, judged."""

    def __init__(
        self,
        selection: Selection,
        wanted: RunOptions,
        logs: Path,
        stack: ExitStack,
    ) -> None:
        """Files that are opened are closed with the ``stack``."""
        self.parts: list[Part] = []
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

    @property
    def left(self) -> frozenset[int]:
        """The indices of the scenarios of which nothing is known yet."""
        return frozenset() if self._check is None else frozenset(self._check.left)

    @property
    def done(self) -> frozenset[int]:
        """The indices of the others."""
        every = () if self._check is None else self._check.scenarios
        return frozenset(range(len(every))) - self.left

    def names_of(self, indices: Collection[int]) -> str:
        """Return the names of scenarios."""
        scenarios = () if self._check is None else self._check.scenarios
        return ", ".join(scenarios[index].name for index in sorted(indices))

    @property
    def is_broken(self) -> bool:
        """Whether what machines write cannot be read, or there is nothing to run."""
        return bool(self._broken) or self._check is None or self._check.at_once is not None

    def note_end(self, part: Part, ending: Ending) -> frozenset[int]:
        """Take what a machine has left, and return those scenarios that were under way in it.

        If it is one alone, it ends as its machine has ended, and none is returned. Raises
        EnoughError.
        """
        self.go_on()
        if self._check is None or part.carried is not None:
            return frozenset()
        names = set(ending.reports.started)
        under_way = frozenset(
            index
            for index, header in enumerate(part.reader.headers)
            if header.scenario.name in names and index in self._check.left
        )
        if len(under_way) > 1:
            return under_way
        for index in under_way:
            self._end(part, index, ending)
        return frozenset()

    def whole(self, endings: Sequence[Ending], release: str) -> Run:
        """Return the run of machines that have ended.

        Raises click.exceptions.Exit if their command itself said why it did not begin.
        """
        with suppress(EnoughError):
            self.go_on()
        every = list(zip(self.parts, endings, strict=True))
        ends = [ending.why for part, ending in every if not part.is_followed]
        whys = (self._early.why, self._broken, *ends)
        why = next(filter(None, whys), "")
        if self._check is None:
            if not why and endings[0].status != PASSED:
                raise click.exceptions.Exit(endings[0].status)
            host = Host(host_in_brief({"kernel": release}))
            self._wanted.reports.reporter.begin((), host.info)
            return nothing(host, early=why or "the machine's check has left nothing")
        if self._check.at_once is not None:
            return self._check.at_once
        for part, ending in every:
            if part.carried is None and not part.is_followed:
                early = why or f"the machine's check ended with status {ending.status}"
                part.carried = Carried((), (), 0.0, early)
                self._end_under_way(part, ending)
        self._check.judge.end()
        carried = [part.carried for part in self.parts if part.carried is not None]
        return self._check.judge.run(self._check.host, _together(carried, why))

    def _end_under_way(self, part: Part, ending: Ending) -> None:
        """If the scenario under way left no history, end it as its machine ended."""
        if not ending.why or self._check is None:
            return
        for index, header in enumerate(part.reader.headers):
            if header.scenario.name == ending.reports.under_way and index in self._check.left:
                self._end(part, index, ending)

    def _end(self, part: Part, index: int, ending: Ending) -> None:
        """End a scenario as its machine ended: with the kernel's complaint, if it panicked."""
        assert self._check is not None
        reports = ending.reports
        reason = INTERRUPTED if ending.why.startswith(INTERRUPTED) else f"{HUNG}{ending.why}"
        problems = (Problem(reports.complaint),) if reports.has_panicked else ()
        record = ended_at_once(part.reader.headers[index], reason)
        self._check.note(index)
        self._check.judge.take(Finished(index, record, 0.0, problems))


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
        max((each.seconds for each in every), default=0.0),
        next((each.early for each in every if each.early), why),
        "".join(each.error for each in every),
    )
