"""Executes scenarios one after the other and judges them, while the kernel's health is watched."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from vmm.cli.host import Host, reserved_cpu
from vmm.cli.journal import Journal
from vmm.health import KernelWatch, Problem
from vmm.memslots.check import Status, Verdict
from vmm.memslots.history import Header
from vmm.memslots.operations import Scenario
from vmm.memslots.plan import out_of_reach
from vmm.memslots.runner import HUNG, INTERRUPTED, Record, Worker
from vmm.report.result import Checked, Run, judged

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
    """Yield each scenario's result, in order, one scenario later than it ran."""
    headers = [Header(each, host.features, host.info.in_brief()) for each in scenarios]
    judging: Callable[[], Checked] | None = None
    file = None if journal is None else journal.file
    hangs = 0
    with Worker(headers, journal=file, cpu=cpu, patience=patience) as worker:
        for index, scenario in enumerate(scenarios):
            missing = host.features.missing(scenario.needs) or out_of_reach(
                scenario, host.features.touch_limit
            )
            if not missing:
                begin(scenario)
                worker.start(index)
                start = time.monotonic()
            if judging is not None:
                yield judging()
            if missing:
                skipped = Verdict(scenario.name, Status.SKIPPED, f"needs {missing}")
                judging = partial(Checked, scenario, skipped)
                continue
            record = worker.wait()
            judging = partial(_judged, record, time.monotonic() - start, watch.news(), journal)
            hangs += record.reason.startswith(HUNG)
            if record.reason == INTERRUPTED or hangs == MAX_HANGS:
                break
        if judging is not None:
            yield judging()


def _judged(
    record: Record, seconds: float, problems: tuple[Problem, ...], journal: Journal | None
) -> Checked:
    checked = replace(judged(record.history()), seconds=seconds, problems=problems)
    if journal is not None:
        journal.keep(record, checked)
    return checked
