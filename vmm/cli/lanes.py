"""Scenarios side by side: which may run at the same time, and whom a complaint is about."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vmm.execution.runner import Worker, first_ended
from vmm.host.health import Problem, names_child
from vmm.scenario.operations import HUGE_KINDS, Churn, Lives, Race, Scenario
from vmm.verdict.known_issues import issues_met

USUAL_LANES = 2
"""So many scenarios run at the same time, where there are so many CPUs."""

_OF_OTHERS = (Race, Lives, Churn)

_LONG = 10_000
"""A scenario of so many operations is begun early: else the others end, and wait for it."""


@dataclass(slots=True)
class Lane:
    """A worker, and the scenario that it carries out.

    ``process`` is the name by which the kernel's complaints call the worker.
    """

    worker: Worker
    process: str
    index: int = 0
    scenario: str = ""
    start: float = 0.0
    problems: list[Problem] = field(default_factory=list)


def usual_lanes() -> int:
    """Return how many lanes there are, unless somebody wants to have it otherwise."""
    return min(USUAL_LANES, len(os.sched_getaffinity(0)))


def needs_the_machine(scenario: Scenario, host: dict[str, str]) -> bool:
    """Return whether a scenario must run alone.

    Races want all CPUs; the kernel's memory is not to change by others while it is looked at; huge
    pages are few; and what is expected to make the kernel complain must not be taken for somebody
    else's fault.
    """
    return (
        any(_wants_the_machine(op) for op in scenario.operations if isinstance(op, _OF_OTHERS))
        or any(mapping.kind in HUGE_KINDS for mapping in scenario.mappings)
        or bool(issues_met(scenario, host, lambda issue: bool(issue.log)))
    )


def _wants_the_machine(op: Race | Lives | Churn) -> bool:
    return not isinstance(op, Lives) or op.watch == "kernel"


def may_hang(scenario: Scenario, host: dict[str, str]) -> bool:
    """Return whether some kernels are known to hang in a scenario, and this may be one of them."""
    return any(issue.hangs for issue in issues_met(scenario, host))


def order(scenarios: Sequence[Scenario], indices: Sequence[int], host: dict[str, str]) -> list[int]:
    """Return the indices in the order in which their scenarios are begun.

    The longest comes first, and so to the first CPU, on which calls wait least.
    """

    def length(index: int) -> float:
        operations = len(scenarios[index].operations)
        if may_hang(scenarios[index], host):
            return math.inf
        return operations if operations >= _LONG else 0

    return sorted(indices, key=length, reverse=True)


def next_ended(busy: Sequence[Lane]) -> Lane:
    """Wait until a lane's scenario ends, or has taken too long, and return the lane."""
    if len(busy) == 1:
        return busy[0]
    workers = [lane.worker for lane in busy]
    return busy[workers.index(first_ended(workers))]


def share_out(problems: Sequence[Problem], busy: Sequence[Lane]) -> None:
    """Give each complaint of the kernel to the scenarios under way that it may be about.

    The kernel's log names the process that made it complain. Its counters name none: they go with
    what the log says, and where it says nothing they concern all.
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
