"""The process that minimises a difference, and says how reliably what is left still differs."""

import os
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import msgspec

from vmm.execution.runner import run_isolated
from vmm.fuzz.messages import Best, Failed, Minimised, send
from vmm.fuzz.minimise.minimiser import Minimiser
from vmm.fuzz.trial import attempt
from vmm.kvm.system import Kvm
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.verdict.judge import judge

_RATE_RUNS = 10
_RATE_S = 10.0
"""So long may it take to find a rate: what hangs takes its time."""

_HANG_LIMIT_S = 5.0
_STEADY_RUNS = 3


KindOf = Callable[[Scenario], str]

ENDINGS = ("hung", "died")
"""The kinds of runs that did not come to their end."""


class Task(msgspec.Struct, frozen=True):
    """What to minimise. ``kind`` is that of its difference, or how its run ended.

    ``is_steady`` asks to minimise only what differs in each of some runs.
    """

    scenario: Scenario
    kind: str
    features: Features
    time_limit_s: float
    cpu: int
    is_steady: bool = True


def ending(reason: str) -> str:
    """Return the kind of a run that hung or died: its first words."""
    return reason.partition(":")[0]


def run_minimiser(task: Task, to: Connection) -> None:
    """Minimise, tell of every improvement, and of the result; the body of a process."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # The parent answers it.
    os.sched_setaffinity(0, {task.cpu})
    try:
        if task.kind in ENDINGS:
            minimise(task, to, lambda scenario: _ending_of(task, scenario))
            return
        with Kvm.open() as kvm:
            kind_of = partial(_kind_of, kvm, task)
            if not task.is_steady or steady_kind(kind_of, task.scenario) == related(task.kind):
                minimise(task, to, kind_of)
    except Exception:
        send(to, Failed(traceback.format_exc(), scenario=task.scenario))


def minimise(task: Task, to: Connection, kind_of: KindOf) -> None:
    """Minimise; ``kind_of`` runs a scenario and says how it differs, "" if it does not."""
    wanted = related(task.kind)
    minimiser = Minimiser(
        lambda scenario: related(kind_of(scenario)) == wanted,
        task.features.touch_limit,
        task.time_limit_s,
    )
    best = minimiser.minimise(task.scenario, lambda better: send(to, Best(better, minimiser.tries)))
    kinds: list[str] = []
    deadline = time.monotonic() + _RATE_S
    while not kinds or (len(kinds) < _RATE_RUNS and time.monotonic() < deadline):
        kinds.append(kind_of(best))
    same = [kind for kind in kinds if related(kind) == wanted]
    kind = same[0] if same else task.kind
    send(to, Minimised(best, kind, minimiser.tries, len(same), len(kinds), minimiser.unfinished))


def steady_kind(kind_of: KindOf, scenario: Scenario) -> str:
    """Return what the kinds of some runs share; "" where they share nothing."""
    kinds = {related(kind_of(scenario)) for _ in range(_STEADY_RUNS)}
    return kinds.pop() if len(kinds) == 1 else ""


def related(kind: str) -> str:
    """Return what two kinds must share to be taken for the same: operation and rules."""
    return kind.rpartition(" ")[0] or kind


def _kind_of(kvm: Kvm, task: Task, scenario: Scenario) -> str:
    try:
        return attempt(kvm, scenario, task.features).kind
    except (OSError, ValueError):
        # A wrong answer can be one that this program has no way to go on from.
        return ""


def _ending_of(task: Task, scenario: Scenario) -> str:
    history = run_isolated(scenario, task.features, time_limit_s=_HANG_LIMIT_S)
    reason = judge(history).reason
    return ending(reason) if reason.startswith(ENDINGS) else ""
