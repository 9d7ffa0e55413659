"""Runs scenarios, some side by side, while the kernel's health is watched."""

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vmm.cli.output.printing import OutputLost
from vmm.cli.running import lanes
from vmm.cli.running.host import Host, reserved_cpus
from vmm.cli.running.lanes import Lane
from vmm.execution.runner import Record, Worker
from vmm.host.child import name_of
from vmm.host.freememory import FreeMemory
from vmm.host.health import KernelWatch, Problem
from vmm.scenario.codec import ending_of, history_line
from vmm.scenario.demand import short_of_memory
from vmm.scenario.endings import ENDLESS, HUNG, INTERRUPTED, is_short, of_the_host, why_failed
from vmm.scenario.history import End, Header
from vmm.scenario.operations import Scenario
from vmm.scenario.plan import why_not
from vmm.verdict.known.weighing import issues_met

MAX_HANGS = 3
"""A kernel that hung this often will hang again: the remaining scenarios are left out, by name."""

_KNOWN_HANG_S = 1.0
"""Time limit of a scenario in which some kernels are known to hang; doubled at a patience of 20. On
other kernels it takes less than a tenth of that, and less than a quarter on bochs."""

Begin = Callable[[Scenario], None]
Claim = Callable[[int], bool]
"""Whether this run gets the scenario with an index; other runs may have claimed it.

Raises OSError if that cannot be known.
"""


def _always(index: int) -> bool:
    return True


def _ignore(scenario: Scenario) -> None:
    """Do nothing as a scenario begins."""


@dataclass(slots=True)
class EarlyEnd:
    """Whether scenarios that have not begun are left out, and why; the first reason counts."""

    why: str = ""

    def because(self, why: str) -> None:
        """Leave out the scenarios that have not begun."""
        self.why = self.why or why


@dataclass(frozen=True, slots=True)
class Finished:
    """A scenario that ran for ``seconds``, and the kernel's complaints during it."""

    index: int
    record: Record
    seconds: float
    problems: tuple[Problem, ...] = ()


class Taker(Protocol):
    """Receives what scenarios leave; its work on that can be done while others run."""

    @property
    def has_work(self) -> bool:
        """Whether there is work to do."""

    def work(self) -> None:
        """Do a part of the work."""

    def skip(self, index: int, missing: str) -> None:
        """Receive a scenario that does not run because of what is ``missing``."""

    def take(self, ran: Finished) -> None:
        """Receive a scenario that ran."""

    def end(self) -> None:
        """Finish the work: no more scenarios follow."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What to run, and how: ``begin`` gets each scenario as it begins.

    ``jobs`` scenarios run side by side (None: the usual number); each may take ``patience`` times
    as long as usual. With a ``journal`` one runs at a time, and that file holds the history of the
    one under way. If other runs share the scenarios, this one runs those that it can ``claim``.
    """

    scenarios: Sequence[Scenario]
    host: Host
    begin: Begin = _ignore
    journal: Path | None = None
    patience: float = 1.0
    jobs: int | None = None
    early: EarlyEnd = field(default_factory=EarlyEnd)
    claim: Claim = _always


@dataclass(frozen=True, slots=True)
class Carried:
    """How a run went: see `vmm.verdict.result.Run`."""

    cpus: tuple[int, ...]
    weaknesses: tuple[str, ...]
    seconds: float
    early: str = ""
    error: str = ""


def carry_out(orders: Orders, taker: Taker) -> Carried:
    """Run scenarios and pass each to ``taker``, which works on it while others run.

    The run ends early when it is interrupted, when its output is lost, or when ``orders.early``
    says so; what has run is passed on all the same.
    """
    start = time.monotonic()
    count = 1 if orders.journal is not None else orders.jobs or lanes.usual_lanes()
    early, error = orders.early, ""
    with reserved_cpus(min(count, len(orders.scenarios))) as cpus, KernelWatch() as watch:
        try:
            _Carrying(orders, watch, taker).run(cpus)
        except KeyboardInterrupt:
            early.because(INTERRUPTED)
        except OutputLost as lost:
            early.because(lost.message)
        except Exception as failure:
            if is_short(failure):
                early.because(of_the_host(failure))
            else:
                error = traceback.format_exc()
        weaknesses = tuple(watch.weaknesses)
    return Carried(cpus, weaknesses, time.monotonic() - start, early.why, error)


def ended_at_once(header: Header, reason: str) -> Record:
    """Return the record of a scenario that could not begin."""
    return Record(header, history_line(header) + history_line(End(reason)), reason)


class _Carrying:
    """The scenarios of one run, and its progress."""

    def __init__(self, orders: Orders, watch: KernelWatch, taker: Taker) -> None:
        self._orders = orders
        self._scenarios = orders.scenarios
        self._watch = watch
        self._taker = taker
        self._early = orders.early
        facts = orders.host.info.in_brief()
        self._headers = [Header(each, orders.host.features, facts) for each in orders.scenarios]
        self._memory = FreeMemory()
        self._hangs = 0
        self._may_hang: set[int] = set()
        """The scenarios in which some kernels are known to hang, and this may be one of them."""

    def run(self, cpus: Sequence[int]) -> None:
        """Run the scenarios, one at a time on each CPU."""
        orders, taker = self._orders, self._taker
        with ExitStack() as stack:
            every: list[Lane] = []
            for number, cpu in enumerate(cpus):
                name = name_of(number)
                worker = Worker(
                    self._headers,
                    journal=orders.journal,
                    cpu=cpu,
                    patience=orders.patience,
                    process=name,
                )
                every.append(Lane(stack.enter_context(worker), name))
            with suppress(KeyboardInterrupt):  # What has run still counts.
                alone, together = self._runnable()
                self._run(together, every)
                self._run(alone, every[:1])
            taker.end()

    def _runnable(self) -> tuple[list[int], list[int]]:
        """Return the scenarios that must run alone, and the others; those skipped are passed on."""
        alone: list[int] = []
        together: list[int] = []
        features = self._orders.host.features
        for index, scenario in enumerate(self._scenarios):
            missing = why_not(scenario, features)
            if missing:
                if self._is_claimed(index):
                    self._taker.skip(index, missing)
                continue
            issues = issues_met(self._headers[index])
            if any(issue.hangs for issue in issues):
                self._may_hang.add(index)
            group = alone if lanes.needs_the_machine(scenario, issues) else together
            group.append(index)
        return alone, together

    def _run(self, indices: Sequence[int], every: Sequence[Lane]) -> None:
        """Run some of the scenarios; the taker works on those that have ended meanwhile."""
        left = lanes.Queue(self._scenarios, indices, self._may_hang)
        idle, busy = deque(every), list[Lane]()
        while busy or (left and not self._early.why):
            while left and idle and not self._early.why:
                lane = idle[0]
                if self._begin(lane, left.take(first=lane is every[0])):
                    busy.append(idle.popleft())
            while self._taker.has_work and not any(lane.worker.ended() for lane in busy):
                self._taker.work()
            if busy:
                lane = lanes.next_ended(busy)
                self._end(lane, busy)
                busy.remove(lane)
                idle.append(lane)

    def _begin(self, lane: Lane, index: int) -> bool:
        """Begin with a scenario in a lane; False if that does not run here."""
        if not self._is_claimed(index):
            return False
        missing = short_of_memory(self._scenarios[index], self._memory.size_bytes())
        if missing:
            self._taker.skip(index, missing)
            return False
        return self._start(lane, index)

    def _is_claimed(self, index: int) -> bool:
        """Whether this run gets a scenario; if that cannot be known, the run ends."""
        try:
            return self._orders.claim(index)
        except OSError as error:
            self._early.because(of_the_host(error))
            return False

    def _start(self, lane: Lane, index: int) -> bool:
        """Start a scenario; return False if that fails."""
        scenario = self._scenarios[index]
        self._orders.begin(scenario)
        lane.index, lane.scenario, lane.problems = index, scenario.name, []
        try:
            lane.worker.start(index, self._limit_s(index))
        except OSError as error:
            ended = ended_at_once(self._headers[index], why_failed(error))
            self._taker.take(Finished(index, ended, 0.0))
            return False
        lane.start = time.monotonic()
        return True

    def _limit_s(self, index: int) -> float | None:
        """Return the time limit of a scenario in which a kernel may be known to hang, else None."""
        if index in self._may_hang:
            return _KNOWN_HANG_S * (1 + self._orders.patience / 20)
        return None

    def _end(self, lane: Lane, busy: Sequence[Lane]) -> None:
        """Pass on what a scenario has left, and give the kernel's complaints to those under way."""
        record = lane.worker.wait()
        lanes.share_out(self._watch.news(), busy)
        seconds = time.monotonic() - lane.start
        self._taker.take(Finished(lane.index, record, seconds, tuple(lane.problems)))
        if lane.index not in self._may_hang and _hung(record):
            self._hangs += 1
            if self._hangs == MAX_HANGS:
                self._early.because(f"{MAX_HANGS} scenarios hung")
        if record.reason == INTERRUPTED:
            self._early.because(INTERRUPTED)


def _hung(record: Record) -> bool:
    """Whether the kernel or its guest did not return."""
    return (record.reason or ending_of(record.data)).startswith((HUNG, ENDLESS))
