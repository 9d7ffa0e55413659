"""Executes scenarios, some side by side, and judges them; the kernel's health is watched."""

import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

from vmm.cli import lanes
from vmm.cli.history_files import HistoryFiles
from vmm.cli.host import Host, reserved_cpus
from vmm.cli.lanes import Lane
from vmm.cli.said import OutputLost
from vmm.execution.runner import Record, Worker
from vmm.host.child import name_of
from vmm.host.freememory import FreeMemory
from vmm.host.health import KernelWatch, Problem
from vmm.host.signals import is_interruption
from vmm.scenario.demand import short_of_memory
from vmm.scenario.endings import ENDLESS, HOST, HUNG, what_is_short
from vmm.scenario.history import INTERRUPTED, Header
from vmm.scenario.operations import Scenario
from vmm.scenario.plan import why_not
from vmm.verdict.identity import Identity
from vmm.verdict.judge import Status, Verdict, judging
from vmm.verdict.known_issues import issues_met
from vmm.verdict.result import Checked, Run, broken_off, concluded
from vmm.verdict.steps import StepRecorder

MAX_HANGS = 3
"""A kernel that hung so often will go on to: what is left does not run, and that is said."""

_KNOWN_HANG_S = 5.0
"""So long a scenario may take in which some kernels are known to hang, as much again where they may
be ten times as slow: those are not waited for, and others take less than a second."""

Begin = Callable[[Scenario], None]
Numbered = tuple[int, Checked]
"""The index of a scenario, and its result."""


def execute(
    scenarios: Sequence[Scenario],
    host: Host,
    begin: Begin,
    done: Callable[[Checked], None],
    files: HistoryFiles | None = None,
    patience: float = 1.0,
    jobs: int | None = None,
    max_differences: int | None = None,
    with_steps: bool = False,
) -> Run:
    """Run the scenarios; ``begin`` gets each as it begins, ``done`` the results, in order.

    So many ``jobs`` run side by side, as many as is usual here unless told; one at a time where a
    file holds the history of the one under way. A scenario is judged while others run, and may take
    ``patience`` times as long as usual. ``with_steps`` puts into the results what happened at each
    operation.

    The run ends early when it is interrupted, when nobody takes what ``done`` prints, or when
    ``max_differences`` scenarios differ by one cause: what ran is kept, and what did not is named.
    """
    checked: list[Checked] = []
    start = time.monotonic()
    has_file = files is not None and files.file is not None
    count = 1 if has_file else jobs or lanes.usual_lanes()
    early = error = ""
    with reserved_cpus(min(count, len(scenarios))) as cpus, KernelWatch() as watch:
        execution = _Execution(scenarios, host, watch, begin, files, max_differences, with_steps)
        try:
            for each in _in_order(execution.results(cpus, patience)):
                checked.append(each)
                done(each)
        except KeyboardInterrupt:
            early = INTERRUPTED
        except OutputLost as lost:
            early = lost.message
        except Exception:
            error = traceback.format_exc()
        weaknesses = tuple(watch.weaknesses)
    known = {each.scenario.name for each in checked}
    left = tuple(scenario.name for scenario in scenarios if scenario.name not in known)
    early = early or execution.early or (INTERRUPTED if left and not error else "")
    if files is not None and files.failures:
        early = early or f"{HOST}{files.failures[0]}"
    return Run(
        tuple(checked),
        host.features,
        host.info,
        weaknesses,
        left,
        cpus,
        time.monotonic() - start,
        early=early,
        error=error,
    )


def _in_order(results: Iterable[Numbered]) -> Iterator[Checked]:
    """Yield results by their numbers, each as soon as no lower one can still come."""
    early: dict[int, Checked] = {}
    following = 0
    for index, result in results:
        early[index] = result
        while following in early:
            yield early.pop(following)
            following += 1
    yield from (early[index] for index in sorted(early))


class _Execution:
    """The scenarios of one run, and how far they are."""

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        host: Host,
        watch: KernelWatch,
        begin: Begin,
        files: HistoryFiles | None,
        max_differences: int | None,
        with_steps: bool,
    ) -> None:
        self._with_steps = with_steps
        self._scenarios = scenarios
        self._host = host
        self._watch = watch
        self._begin = begin
        self._files = files
        self._facts = host.info.in_brief()
        self._memory = FreeMemory()
        self._waiting = _Waiting()
        self._hangs = 0
        self._patience = 1.0
        self._causes: Counter[Identity] = Counter()
        self._max_differences = max_differences
        self.early = ""
        """Why not all of them run, where an interruption is not the reason."""
        self._is_over = False

    def results(self, cpus: Sequence[int], patience: float) -> Iterator[Numbered]:
        """Run the scenarios, one on each CPU, and yield each result some time after it ran."""
        self._patience = patience
        headers = [Header(each, self._host.features, self._facts) for each in self._scenarios]
        file = None if self._files is None else self._files.file
        with ExitStack() as stack:
            every: list[Lane] = []
            for number, cpu in enumerate(cpus):
                name = name_of(number)
                worker = Worker(
                    headers,
                    journal=file,
                    cpu=cpu,
                    patience=patience,
                    process=name,
                )
                every.append(Lane(stack.enter_context(worker), name))
            with suppress(KeyboardInterrupt):  # What has run is judged all the same.
                alone, together = self._runnable()
                yield from self._run(together, every)
                yield from self._run(alone, every[:1])
            while self._waiting:
                yield from self._waiting.judge_a_bit()

    def _runnable(self) -> tuple[list[int], list[int]]:
        """Return what runs alone, and what does not; results of what is skipped are there."""
        alone: list[int] = []
        together: list[int] = []
        features = self._host.features
        for index, scenario in enumerate(self._scenarios):
            missing = why_not(scenario, features)
            if missing:
                self._skip(index, missing)
            elif lanes.needs_the_machine(scenario, self._facts):
                alone.append(index)
            else:
                together.append(index)
        return alone, together

    def _run(self, indices: Sequence[int], every: Sequence[Lane]) -> Iterator[Numbered]:
        """Run some of the scenarios, and yield the results of those that are judged meanwhile."""
        left = deque(lanes.order(self._scenarios, indices))
        idle, busy = deque(every), list[Lane]()
        while busy or (left and not self._is_over):
            while left and idle and not self._is_over:
                index = left.popleft()
                missing = short_of_memory(self._scenarios[index], self._memory.size_bytes())
                if missing:
                    self._skip(index, missing)
                    continue
                lane = idle.popleft()
                if self._start(lane, index):
                    busy.append(lane)
                else:
                    idle.append(lane)
            while self._waiting and not any(lane.worker.ended() for lane in busy):
                yield from self._noted(self._waiting.judge_a_bit())
            if busy:
                lane = lanes.next_ended(busy)
                self._end(lane, busy)
                busy.remove(lane)
                idle.append(lane)

    def _noted(self, results: Iterable[Numbered]) -> Iterator[Numbered]:
        """Pass results on, and end the run when enough of them differ by one cause."""
        for index, checked in results:
            difference = checked.verdict.difference
            if checked.verdict.status is Status.DIFFERS and difference is not None:
                cause = difference.identity.cause
                self._causes[cause] += 1
                if self._causes[cause] == self._max_differences and not self._is_over:
                    self._is_over = True
                    self.early = f"--max-differences {self._max_differences} for one cause: {cause}"
            if checked.verdict.reason.startswith(ENDLESS):
                self._hung()
            yield index, checked

    def _hung(self) -> None:
        """Count a kernel that did not come back, or whose guest did not."""
        self._hangs += 1
        if self._hangs == MAX_HANGS and not self._is_over:
            self._is_over = True
            self.early = f"{MAX_HANGS} scenarios hung"

    def _skip(self, index: int, missing: str) -> None:
        scenario = self._scenarios[index]
        skipped = Verdict(scenario.name, Status.SKIPPED, f"needs {missing}")
        self._waiting.add(index, iter((Checked(scenario, skipped),)))

    def _start(self, lane: Lane, index: int) -> bool:
        """Begin with a scenario; False if that cannot be, which is its result then."""
        scenario = self._scenarios[index]
        self._begin(scenario)
        lane.index, lane.scenario, lane.problems = index, scenario.name, []
        try:
            lane.worker.start(index, self._limit_s(scenario))
        except OSError as error:
            self._waiting.add(index, iter((broken_off(scenario, error),)))
            return False
        lane.start = time.monotonic()
        return True

    def _limit_s(self, scenario: Scenario) -> float | None:
        """Return how long a scenario may take in which some kernels are known to hang."""
        if any(issue.hangs for issue in issues_met(scenario, self._facts)):
            return _KNOWN_HANG_S * (1 + self._patience / 10)
        return None

    def _end(self, lane: Lane, busy: Sequence[Lane]) -> None:
        """Take what a scenario has left, and the kernel's complaints of all that are under way."""
        record = lane.worker.wait()
        lanes.share_out(self._watch.news(), busy)
        seconds = time.monotonic() - lane.start
        problems = tuple(lane.problems)
        judging = _judging(record, seconds, problems, self._files, self._with_steps)
        self._waiting.add(lane.index, judging)
        if record.reason.startswith(HUNG) and self._limit_s(record.header.scenario) is None:
            self._hung()
        if record.reason == INTERRUPTED:
            self._is_over = True


class _Waiting:
    """What has run and waits for its verdict: judged bit by bit, while something else runs."""

    def __init__(self) -> None:
        self._judging: deque[tuple[int, Iterator[Checked | None]]] = deque()

    def __len__(self) -> int:
        return len(self._judging)

    def add(self, index: int, judging: Iterator[Checked | None]) -> None:
        self._judging.append((index, judging))

    def judge_a_bit(self) -> Iterator[Numbered]:
        """Go on with the first that waits; yield its result, if that is the end of it."""
        index, judging = self._judging[0]
        try:
            result = next(judging)
        except KeyboardInterrupt:
            self._judging.clear()  # This one can't be gone on with, and order is kept.
            raise
        if result is not None:
            self._judging.popleft()
            yield index, result


def _judging(
    record: Record,
    seconds: float,
    problems: tuple[Problem, ...],
    files: HistoryFiles | None,
    with_steps: bool,
) -> Iterator[Checked | None]:
    """Judge a record bit by bit; an error of ours costs this scenario, and no other."""
    scenario = record.header.scenario
    try:
        history = record.history()
        recorder = StepRecorder(history.header) if with_steps else None
        for verdict in judging(history, recorder):
            if verdict is None:
                yield None
                continue
            checked = concluded(history, verdict)
            checked = replace(checked, seconds=seconds, problems=problems)
            if recorder is not None:
                checked = replace(checked, steps=recorder.steps())
    except Exception as error:
        if is_interruption(error):
            raise KeyboardInterrupt from error
        checked = replace(broken_off(scenario, error), seconds=seconds, problems=problems)
    if files is not None:
        try:
            files.keep(record, checked)
        except OSError as error:
            files.failures.append(f"a history could not be kept: {what_is_short(error)}")
    yield checked
