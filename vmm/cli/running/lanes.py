"""Which scenarios may run side by side, and which of them a complaint of the kernel concerns."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from vmm.execution.runner import Worker, first_ended
from vmm.host.cpus import allowed
from vmm.host.health import Problem, names_child
from vmm.scenario.operations import (
    HUGE_KINDS,
    Churn,
    Lives,
    Race,
    Scenario,
    SetUserMemoryRegion,
)
from vmm.verdict.known.issue import KnownIssue

USUAL_LANES = 3
"""How many scenarios run side by side: one more than there are CPUs, but no more than this.

Region calls and the closing of a VM wait for SRCU grace periods, in which a CPU has nothing to do.
"""

_OF_OTHERS = (Race, Lives, Churn)

_LONG = 10_000
"""A scenario with this many operations is begun early, so that it is not waited for at the end."""

_MANY_CHANGES = 100
"""Likewise a scenario with this many region calls, each of which waits for an SRCU grace period."""


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
    """Return the default number of lanes; with a single CPU, one scenario runs at a time."""
    cpus = len(allowed())
    return min(USUAL_LANES, cpus + 1) if cpus > 1 else 1


def needs_the_machine(scenario: Scenario, issues: Collection[KnownIssue]) -> bool:
    """Return whether a scenario, which may meet these known ``issues``, must run alone.

    Races want all CPUs; nobody else may change the kernel's memory while it is measured; huge pages
    are few; and expected complaints of the kernel must not be blamed on other scenarios.
    """
    return (
        any(_wants_the_machine(op) for op in scenario.operations if isinstance(op, _OF_OTHERS))
        or any(mapping.kind in HUGE_KINDS for mapping in scenario.mappings)
        or any(issue.log for issue in issues)
    )


def _wants_the_machine(op: Race | Lives | Churn) -> bool:
    return not isinstance(op, Lives) or op.watch == "kernel"


class Queue:
    """Indices of the scenarios that have yet to begin.

    Scenarios that may hang come first, then long ones. Those with many region calls are for the
    first lane, on whose CPU such calls wait least (see `reserved_cpus`); other lanes
    take them when nothing else is left.
    """

    def __init__(
        self, scenarios: Sequence[Scenario], indices: Sequence[int], may_hang: Collection[int]
    ) -> None:
        def begins(index: int) -> tuple[bool, int]:
            operations = len(scenarios[index].operations)
            return index not in may_hang, -operations if operations >= _LONG else 0

        changes = {index: _changes(scenarios[index]) for index in indices if index not in may_hang}
        many = [index for index, number in changes.items() if number >= _MANY_CHANGES]
        self._many = deque(sorted(many, key=lambda index: -changes[index]))
        others = (each for each in indices if changes.get(each, 0) < _MANY_CHANGES)
        self._others = deque(sorted(others, key=begins))

    def __bool__(self) -> bool:
        return bool(self._many or self._others)

    def take(self, *, first: bool) -> int:
        """Return the next index, for the ``first`` lane or another."""
        if first and self._many:
            return self._many.popleft()
        return self._others.popleft() if self._others else self._many.pop()


def _changes(scenario: Scenario) -> int:
    """Return how many region calls a scenario makes."""
    return sum(isinstance(op, SetUserMemoryRegion) for op in scenario.operations)


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
