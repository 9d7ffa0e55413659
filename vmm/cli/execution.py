"""Executes scenarios one after the other and judges them, while the kernel's health is watched."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from vmm.cli.host import Host, reserved_cpu
from vmm.cli.journal import Journal
from vmm.health import KernelWatch, Problem
from vmm.memslots.check import Status, Verdict, judging
from vmm.memslots.history import Header
from vmm.memslots.operations import Scenario
from vmm.memslots.plan import out_of_reach
from vmm.memslots.runner import HUNG, INTERRUPTED, Record, Worker
from vmm.report.result import Checked, Run, concluded

MAX_HANGS = 3
"""A kernel that hung so often will go on to: what is left does not run, and that is said."""


def execute(
    scenarios: Sequence[Scenario],
    host: Host,
    begin: Callable[[Scenario], None],
    done: Callable[[Checked], None],
    journal: Journal | None = None,
    patience: float = 1.0,
) -> Run:
    """Run the scenarios on one CPU; ``begin`` and ``done`` frame each of them.

    A scenario is judged while the next one runs. An interruption ends the run early: what ran is
    kept, and what did not is named. A scenario may take ``patience`` times as long as usual.
    """
    checked: list[Checked] = []
    start = time.monotonic()
    with reserved_cpu() as cpu, KernelWatch() as watch:
        try:
            for each in _checked(scenarios, host, cpu, watch, begin, journal, patience):
                checked.append(each)
                done(each)
        except KeyboardInterrupt:
            pass
        weaknesses = tuple(watch.weaknesses)
    left = tuple(scenario.name for scenario in scenarios[len(checked) :])
    seconds = time.monotonic() - start
    return Run(tuple(checked), host.features, host.info, weaknesses, left, cpu, seconds)


def _checked(
    scenarios: Sequence[Scenario],
    host: Host,
    cpu: int,
    watch: KernelWatch,
    begin: Callable[[Scenario], None],
    journal: Journal | None,
    patience: float,
) -> Iterator[Checked]:
    """Yield each scenario's result, in order, some time after it ran."""
    headers = [Header(each, host.features, host.info.in_brief()) for each in scenarios]
    waiting = _Waiting()
    file = None if journal is None else journal.file
    with Worker(headers, journal=file, cpu=cpu, patience=patience) as worker:
        with suppress(KeyboardInterrupt):  # What has run is judged all the same.
            yield from _run(scenarios, host, worker, waiting, watch, begin, journal)
        while waiting:
            yield from waiting.judge_a_bit()


def _run(
    scenarios: Sequence[Scenario],
    host: Host,
    worker: Worker,
    waiting: "_Waiting",
    watch: KernelWatch,
    begin: Callable[[Scenario], None],
    journal: Journal | None,
) -> Iterator[Checked]:
    """Run the scenarios, and yield the results of those that are judged meanwhile."""
    hangs = 0
    for index, scenario in enumerate(scenarios):
        missing = host.features.missing(scenario.needs) or out_of_reach(
            scenario, host.features.touch_limit
        )
        if missing:
            skipped = Verdict(scenario.name, Status.SKIPPED, f"needs {missing}")
            waiting.add(iter((Checked(scenario, skipped),)))
            continue
        begin(scenario)
        worker.start(index)
        start = time.monotonic()
        while waiting and not worker.ended():
            yield from waiting.judge_a_bit()
        record = worker.wait()
        waiting.add(_judging(record, time.monotonic() - start, watch.news(), journal))
        hangs += record.reason.startswith(HUNG)
        if record.reason == INTERRUPTED or hangs == MAX_HANGS:
            return


class _Waiting:
    """What has run and waits for its verdict: judged bit by bit, while something else runs."""

    def __init__(self) -> None:
        self._judging: deque[Iterator[Checked | None]] = deque()

    def __len__(self) -> int:
        return len(self._judging)

    def add(self, judging: Iterator[Checked | None]) -> None:
        self._judging.append(judging)

    def judge_a_bit(self) -> Iterator[Checked]:
        """Go on with the first that waits; yield its result, if that is the end of it."""
        try:
            result = next(self._judging[0])
        except KeyboardInterrupt:
            self._judging.clear()  # This one can't be gone on with, and order is kept.
            raise
        if result is not None:
            self._judging.popleft()
            yield result


def _judging(
    record: Record, seconds: float, problems: tuple[Problem, ...], journal: Journal | None
) -> Iterator[Checked | None]:
    history = record.history()
    for verdict in judging(history):
        if verdict is None:
            yield None
            continue
        checked = replace(concluded(history, verdict), seconds=seconds, problems=problems)
        if journal is not None:
            journal.keep(record, checked)
        yield checked
