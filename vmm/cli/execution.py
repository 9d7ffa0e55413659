"""Executes scenarios one after the other and judges them, while the kernel's health is watched."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vmm.cli.host import Host, pinned
from vmm.health import KernelWatch
from vmm.memslots.check import Status, Verdict
from vmm.memslots.operations import Scenario
from vmm.memslots.runner import run_isolated
from vmm.report.result import Checked, Run, judged

INTERRUPTED = "interrupted"


def execute(
    scenarios: Sequence[Scenario],
    host: Host,
    begin: Callable[[Scenario], None],
    done: Callable[[Checked], None],
    journal: Path | None = None,
) -> Run:
    """Run the scenarios on one CPU; ``begin`` and ``done`` frame each of them.

    An interruption ends the run early: what ran is kept, and what did not is named.
    ``journal`` is a file for the history of the only scenario.
    """
    checked: list[Checked] = []
    start = time.monotonic()
    with pinned() as cpu, KernelWatch() as watch:
        try:
            for scenario in scenarios:
                begin(scenario)
                checked.append(_execute_one(scenario, host, watch, journal))
                done(checked[-1])
                if checked[-1].verdict.reason == INTERRUPTED:
                    break
        except KeyboardInterrupt:
            pass
        weaknesses = tuple(watch.weaknesses)
    left = tuple(scenario.name for scenario in scenarios[len(checked) :])
    seconds = time.monotonic() - start
    return Run(tuple(checked), host.features, host.info, weaknesses, left, cpu, seconds)


def _execute_one(
    scenario: Scenario, host: Host, watch: KernelWatch, journal: Path | None
) -> Checked:
    missing = host.features.missing(scenario.needs)
    if missing:
        return Checked(scenario, Verdict(scenario.name, Status.SKIPPED, f"needs {missing}"))
    start = time.monotonic()
    history = run_isolated(scenario, host.features, host=host.info.in_brief(), journal=journal)
    seconds = time.monotonic() - start
    found = judged(history)
    return Checked(scenario, found.verdict, found.ran, seconds, watch.news())
