"""Shrinks one scenario for ``vmm fuzz --shrink``."""

import os
from functools import partial

from vmm.child import Child
from vmm.fuzz.findings import Finding
from vmm.fuzz.messages import Best, Failed, Shrunk, receive
from vmm.fuzz.shrinking import Task, ending, run_shrinker
from vmm.fuzz.trial import kind_of
from vmm.memslots.check import Status, judge
from vmm.memslots.features import Features
from vmm.memslots.operations import Scenario
from vmm.memslots.runner import HarnessError, run_isolated

_TIME_LIMIT_S = 120.0


def shrink_scenario(scenario: Scenario, features: Features) -> Finding | None:
    """Return a scenario shrunk; None if it passes. Raises HarnessError."""
    history = run_isolated(scenario, features, time_limit_s=10.0)
    verdict = judge(history)
    if verdict.status is Status.PASSED:
        return None
    if verdict.difference is not None:
        kind = kind_of(verdict, history.events[verdict.difference.event])
    else:
        kind = ending(verdict.reason)
    task = Task(scenario, kind, features, _TIME_LIMIT_S, min(os.sched_getaffinity(0)))
    child = Child.start(partial(run_shrinker, task))
    found = Finding(scenario, kind, 0, found_with=len(scenario.operations))
    try:
        while True:
            match receive(child.connection):
                case Best(scenario, tries):
                    found = Finding(scenario, kind, 0, found.found_with, tries=tries)
                case Shrunk(scenario, kind, tries, differed, runs):
                    return Finding(scenario, kind, 0, found.found_with, 0.0, tries, differed, runs)
                case Failed(reason):
                    raise HarnessError(reason)
                case other:
                    raise HarnessError(f"a shrinker said {type(other).__name__}")
    except EOFError:
        return found
    finally:
        child.end()
