"""Shrinks one scenario for ``vmm fuzz --shrink``."""

import os
import time

from vmm.execution.runner import HarnessError, run_isolated
from vmm.fuzz.findings import Finding
from vmm.fuzz.interruption import Interruption
from vmm.fuzz.messages import AnyMessage, Best, Failed, Shrunk, receive
from vmm.fuzz.shrinking import ENDINGS, Task, ending
from vmm.fuzz.stages import improved, stages
from vmm.fuzz.trial import judged
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.verdict.judge import Verdict, judge

_TIME_LIMIT_S = 120.0
_RUN_LIMIT_S = 10.0
_TICK_S = 0.1


def shrink_scenario(
    scenario: Scenario, features: Features, interruption: Interruption
) -> Finding | Verdict:
    """Return a scenario shrunk, as far as nobody interrupts it; its verdict if nothing differs.

    Raises HarnessError.
    """
    history = run_isolated(scenario, features, time_limit_s=_RUN_LIMIT_S)
    verdict = judge(history)
    if verdict.difference is not None:
        kind = judged(history.header, history.events).kind
    elif verdict.reason.startswith(ENDINGS):
        kind = ending(verdict.reason)
    else:
        return verdict
    found = Finding(scenario, kind, 0, found_with=len(scenario.operations), unfinished=True)
    deadline = time.monotonic() + _TIME_LIMIT_S
    task = Task(scenario, kind, features, _TIME_LIMIT_S, min(os.sched_getaffinity(0)))

    def come_to() -> Finding:
        return found

    for child in stages(task, come_to, (), lambda: deadline - time.monotonic()):
        try:
            while not interruption.asked:
                if child.answered(_TICK_S):
                    found = _improved(found, receive(child.connection))
        except EOFError:
            continue
        finally:
            child.end()
        break
    return found


def _improved(found: Finding, message: AnyMessage) -> Finding:
    match message:
        case Best() | Shrunk():
            return improved(found, message)
        case Failed(reason):
            raise HarnessError(reason)
        case other:
            raise HarnessError(f"a shrinker said {type(other).__name__}")
