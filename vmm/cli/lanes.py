"""Which scenarios may run side by side, and which of them a complaint of the kernel concerns."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vmm.execution.runner import Worker, first_ended
from vmm.host.health import Problem, names_child
from vmm.scenario.operations import HUGE_KINDS, Churn, Lives, Race, Scenario
from vmm.verdict.known_issues import issues_met

USUAL_LANES = 2
"""How many scenarios run side by side, if there are as many CPUs."""

_OF_OTHERS = (Race, Lives, Churn)

_LONG = 10_000
"""A scenario with this many operations is begun early, so that it is not waited for at the end."""


@dataclass(slots=True)
class Lane:
    """A worker and the scenario that it runs.

    ``process`` is the worker's name in the kernel's complaints.
    """

    worker: Worker
    process: str
    index: int = 0
    scenario: str = ""
    start: float = 0.0
    problems: list[Problem] = field(default_factory=list)


def usual_lanes() -> int:
    """Return the default number of lanes."""
    return min(USUAL_LANES, len(os.sched_getaffinity(0)))


def needs_the_machine(scenario: Scenario, host: dict[str, str]) -> bool:
    """Return whether a scenario must run alone.

    Races want all CPUs; nobody else may change the kernel's memory while it is measured; huge pages
    are few; and expected complaints of the kernel must not be blamed on other scenarios.
    """
    return (
        any(_wants_the_machine(op) for op in scenario.operations if isinstance(op, _OF_OTHERS))
        or any(mapping.kind in HUGE_KINDS for mapping in scenario.mappings)
        or bool(issues_met(scenario, host, lambda issue: bool(issue.log)))
    )


def _wants_the_machine(op: Race | Lives | Churn) -> bool:
    return not isinstance(op, Lives) or op.watch == "kernel"


def may_hang(scenario: Scenario, host: dict[str, str]) -> bool:
    """Return whether the kernel may be one that is known to hang in a scenario."""
    return any(issue.hangs for issue in issues_met(scenario, host))


def order(scenarios: Sequence[Scenario], indices: Sequence[int], host: dict[str, str]) -> list[int]:
    """Return the indices in the order in which to begin the scenarios.

    The longest come first, and so on the first CPU, on which calls wait least.
    """

    def length(index: int) -> float:
        operations = len(scenarios[index].operations)
        if may_hang(scenarios[index], host):
            return math.inf
        return operations if operations >= _LONG else 0

    return sorted(indices, key=length, reverse=True)


def next_ended(busy: Sequence[Lane]) -> Lane:
    """Wait until a lane's scenario ends or exceeds its time limit, and return the lane."""
    if len(busy) == 1:
        return busy[0]
    workers = [lane.worker for lane in busy]
    return busy[workers.index(first_ended(workers))]


def share_out(problems: Sequence[Problem], busy: Sequence[Lane]) -> None:
    """Give each complaint of the kernel to the scenarios under way that it may concern.

    The kernel's log names the process that caused it. Its counters name none: they go with what the
    log says, and if it says nothing they concern all.
    """
    accused: list[Lane] = []
    for problem in sorted(problems, key=lambda problem: not problem.excerpt):
        named = [lane for lane in busy if names_child(problem, lane.process)]
        concerned = named or (not problem.excerpt and accused) or busy
        accused += [lane for lane in concerned if lane not in accused]
        for lane in concerned:
            lane.problems.append(_of_one_of(concerned, problem))


def _of_one_of(concerned: Sequence[Lane], problem: Problem) -> Problem:
    if len(concerned) == 1:
        return problem
    names = " and ".join(lane.scenario for lane in concerned)
    return replace(problem, what=f"{problem.what} (while {names} ran at the same time)")
