"""Carries scenarios out, some side by side; the kernel's health is watched."""

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vmm.cli import lanes
from vmm.cli.host import Host, reserved_cpus
from vmm.cli.lanes import Lane
from vmm.cli.said import OutputLost
from vmm.execution.runner import Record, Worker
from vmm.host.child import name_of
from vmm.host.freememory import FreeMemory
from vmm.host.health import KernelWatch, Problem
from vmm.scenario.codec import ending_of, history_line
from vmm.scenario.demand import short_of_memory
from vmm.scenario.endings import ENDLESS, HARNESS, HUNG, INTERRUPTED, is_short, of_the_host
from vmm.scenario.history import End, Header
from vmm.scenario.operations import Scenario
from vmm.scenario.plan import why_not

MAX_HANGS = 3
"""A kernel that hung so often will go on to: what is left does not run, and that is said."""

_KNOWN_HANG_S = 2.0
"""So long a scenario may take in which some kernels are known to hang, as much again where they may
be twenty times as slow: those are not waited for, and others take less than a tenth of that."""

Begin = Callable[[Scenario], None]
Claim = Callable[[int], bool]
"""Whether this run is the one that takes the scenario of an index: others may have taken it.

Raises OSError where that cannot be known."""


def _always(index: int) -> bool:
    return True


@dataclass(slots=True)
class EarlyEnd:
    """Whether scenarios that have not begun are left out, and why: the first reason counts."""

    why: str = ""

    def because(self, why: str) -> None:
        """Leave out what has not begun."""
        self.why = self.why or why


@dataclass(frozen=True, slots=True)
class Ran:
    """A scenario that has run, in so many ``seconds``, and the kernel's complaints meanwhile."""

    index: int
    record: Record
    seconds: float
    problems: tuple[Problem, ...] = ()


class Taker(Protocol):
    """Takes what scenarios leave, and has work with it that may wait until others have begun."""

    @property
    def has_work(self) -> bool:
        """Whether there is work."""

    def work(self) -> None:
        """Do a bit of the work that there is."""

    def skip(self, index: int, missing: str) -> None:
        """Take a scenario that does not run, for want of what is ``missing``."""

    def take(self, ran: Ran) -> None:
        """Take one that ran."""

    def end(self) -> None:
        """Do what is left of the work: no more scenarios come."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What is to be carried out: ``begin`` gets each of the scenarios as it begins.

    So many ``jobs`` run side by side, as many as is usual here unless told; a scenario may take
    ``patience`` times as long as usual. Where there is a ``journal``, one runs at a time, and that
    file holds the history of the one under way. Others that carry out the same leave to this run
    what it can ``claim``.
    """

    scenarios: Sequence[Scenario]
    host: Host
    begin: Begin
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
    """Run scenarios, and let ``taker`` have each; its work is done while others run.

    The run ends early when it is interrupted, when nobody takes what is printed, or when somebody
    says so: what ran is taken all the same.
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
        except Exception:
            error = traceback.format_exc()
        weaknesses = tuple(watch.weaknesses)
    return Carried(cpus, weaknesses, time.monotonic() - start, early.why, error)


def ended_at_once(header: Header, reason: str) -> Record:
    """Return the record of a scenario of which nothing was carried out."""
    return Record(header, history_line(header) + history_line(End(reason)), reason)


def _why(error: OSError) -> str:
    """Return why a scenario could not begin: the host ran out of something, or we failed."""
    return of_the_host(error) if is_short(error) else HARNESS + traceback.format_exc()


class _Carrying:
    """The scenarios of one run, and how far they are."""

    def __init__(self, orders: Orders, watch: KernelWatch, taker: Taker) -> None:
        self._orders = orders
        self._scenarios = orders.scenarios
        self._watch = watch
        self._taker = taker
        self._early = orders.early
        self._facts = orders.host.info.in_brief()
        self._memory = FreeMemory()
        self._hangs = 0

    def run(self, cpus: Sequence[int]) -> None:
        """Run the scenarios, one at a time on each CPU."""
        orders, taker = self._orders, self._taker
        headers = [Header(each, orders.host.features, self._facts) for each in self._scenarios]
        with ExitStack() as stack:
            every: list[Lane] = []
            for number, cpu in enumerate(cpus):
                name = name_of(number)
                worker = Worker(
                    headers,
                    journal=orders.journal,
                    cpu=cpu,
                    patience=orders.patience,
                    process=name,
                )
                every.append(Lane(stack.enter_context(worker), name))
            with suppress(KeyboardInterrupt):  # What has run is taken all the same.
                alone, together = self._runnable()
                self._run(together, every)
                self._run(alone, every[:1])
            taker.end()

    def _runnable(self) -> tuple[list[int], list[int]]:
        """Return what runs alone, and what does not; what is skipped has been taken."""
        alone: list[int] = []
        together: list[int] = []
        features = self._orders.host.features
        for index, scenario in enumerate(self._scenarios):
            missing = why_not(scenario, features)
            if missing:
                if self._is_claimed(index):
                    self._taker.skip(index, missing)
            elif lanes.needs_the_machine(scenario, self._facts):
                alone.append(index)
            else:
                together.append(index)
        return alone, together

    def _run(self, indices: Sequence[int], every: Sequence[Lane]) -> None:
        """Run some of the scenarios; what others have left is worked on meanwhile."""
        left = deque(lanes.order(self._scenarios, indices, self._facts))
        idle, busy = deque(every), list[Lane]()
        while busy or (left and not self._early.why):
            while left and idle and not self._early.why:
                index = left.popleft()
                if not self._is_claimed(index):
                    continue
                missing = short_of_memory(self._scenarios[index], self._memory.size_bytes())
                if missing:
                    self._taker.skip(index, missing)
                    continue
                lane = idle.popleft()
                if self._start(lane, index):
                    busy.append(lane)
                else:
                    idle.append(lane)
            while self._taker.has_work and not any(lane.worker.ended() for lane in busy):
                self._taker.work()
            if busy:
                lane = lanes.next_ended(busy)
                self._end(lane, busy)
                busy.remove(lane)
                idle.append(lane)

    def _is_claimed(self, index: int) -> bool:
        """Whether a scenario is this run's to take; where that cannot be known, the run ends."""
        try:
            return self._orders.claim(index)
        except OSError as error:
            self._early.because(of_the_host(error))
            return False

    def _start(self, lane: Lane, index: int) -> bool:
        """Begin with a scenario; False if that cannot be."""
        scenario = self._scenarios[index]
        self._orders.begin(scenario)
        lane.index, lane.scenario, lane.problems = index, scenario.name, []
        try:
            lane.worker.start(index, self._limit_s(scenario))
        except OSError as error:
            header = Header(scenario, self._orders.host.features, self._facts)
            self._taker.take(Ran(index, ended_at_once(header, _why(error)), 0.0))
            return False
        lane.start = time.monotonic()
        return True

    def _limit_s(self, scenario: Scenario) -> float | None:
        """Return how long a scenario may take in which some kernels are known to hang."""
        if lanes.may_hang(scenario, self._facts):
            return _KNOWN_HANG_S * (1 + self._orders.patience / 20)
        return None

    def _end(self, lane: Lane, busy: Sequence[Lane]) -> None:
        """Take what a scenario has left, and the kernel's complaints of all that are under way."""
        record = lane.worker.wait()
        lanes.share_out(self._watch.news(), busy)
        seconds = time.monotonic() - lane.start
        self._taker.take(Ran(lane.index, record, seconds, tuple(lane.problems)))
        if self._hung(record):
            self._hangs += 1
            if self._hangs == MAX_HANGS:
                self._early.because(f"{MAX_HANGS} scenarios hung")
        if record.reason == INTERRUPTED:
            self._early.because(INTERRUPTED)

    def _hung(self, record: Record) -> bool:
        """Whether the kernel or its guest did not come back, and is not known for that."""
        reason = record.reason or ending_of(record.data)
        return reason.startswith((HUNG, ENDLESS)) and self._limit_s(record.header.scenario) is None
