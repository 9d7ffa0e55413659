"""The process that minimises a difference, and measures how reliably the result differs."""

import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import msgspec

from vmm.execution.runner import long_enough, run_isolated
from vmm.fuzz.endings import HANG_LIMIT_S, ended_badly, ending, hangs_as_known, is_ending
from vmm.fuzz.messages import Best, Minimised, failed, send
from vmm.fuzz.minimise.minimiser import Minimiser
from vmm.fuzz.trial import attempt
from vmm.host.cpus import stay_on
from vmm.kvm.system import Kvm
from vmm.scenario.features import Features
from vmm.scenario.operations import Race, Scenario
from vmm.verdict.identity import Identity
from vmm.verdict.judge import judge

_RATE_RUNS = 10
_RATE_S = 10.0
"""Time limit for measuring the rate, since runs that hang take long."""

_STEADY_RUNS = 3
_RACE_PLAYS = 3
"""How often in a row a smaller race must differ, so that the result shows it nearly always."""


IdentityOf = Callable[[Scenario], Identity | None]


class Task(msgspec.Struct, frozen=True):
    """What to minimise. ``identity`` is that of its difference, or of how its run ended.

    ``is_steady`` asks to minimise only what differs in each of a few runs. With ``host``, which is
    what a history says of it, issues known on this host are no difference: a smaller scenario must
    not end up with one of those.
    """

    scenario: Scenario
    identity: Identity
    features: Features
    time_limit_s: float
    cpu: int
    is_steady: bool = True
    host: dict[str, str] = {}

    @property
    def cause(self) -> Identity:
        """What a smaller scenario must share."""
        return self.identity.cause


def run_minimiser(task: Task, to: Connection) -> None:
    """Minimise; send every improvement, and the result. The body of a process."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # The parent handles it.
    stay_on({task.cpu})
    try:
        if is_ending(task.identity):
            minimise(task, to, partial(_ending_of, task))
            return
        with Kvm.open() as kvm:
            identity_of = partial(_identity_of, kvm, task)
            if not task.is_steady or steady_cause(identity_of, task.scenario) == task.cause:
                minimise(task, to, identity_of)
    except Exception as error:
        send(to, failed(error, task.scenario))


def minimise(task: Task, to: Connection, identity_of: IdentityOf) -> None:
    """Minimise; ``identity_of`` runs a scenario and returns how it differs, None if it does not."""

    def differs(scenario: Scenario) -> bool:
        is_race = any(isinstance(op, Race) for op in scenario.operations)
        plays = _RACE_PLAYS if is_race else 1
        return all(cause_of(identity_of(scenario)) == task.cause for _ in range(plays))

    minimiser = Minimiser(differs, task.features.touch_limit, task.time_limit_s)
    best = minimiser.minimise(task.scenario, lambda better: send(to, Best(better, minimiser.tries)))
    seen: list[Identity | None] = []
    deadline = time.monotonic() + _RATE_S
    while not seen or (len(seen) < _RATE_RUNS and time.monotonic() < deadline):
        seen.append(identity_of(best))
    same = [identity for identity in seen if identity and identity.cause == task.cause]
    identity = same[0] if same else task.identity
    tries, unfinished = minimiser.tries, minimiser.unfinished
    send(to, Minimised(best, identity, tries, len(same), len(seen), unfinished))


def steady_cause(identity_of: IdentityOf, scenario: Scenario) -> Identity | None:
    """Return the cause that all of a few runs share; None if they differ."""
    causes = {cause_of(identity_of(scenario)) for _ in range(_STEADY_RUNS)}
    return causes.pop() if len(causes) == 1 else None


def cause_of(identity: Identity | None) -> Identity | None:
    """Return what two differences must share to count as the same."""
    return None if identity is None else identity.cause


def _identity_of(kvm: Kvm, task: Task, scenario: Scenario) -> Identity | None:
    try:
        trial = attempt(kvm, scenario, task.features, host=task.host)
        return None if trial.is_known else trial.identity
    except (OSError, ValueError):
        # After a wrong answer of the kernel this program may be unable to go on.
        return None


def _ending_of(task: Task, scenario: Scenario) -> Identity | None:
    limit_s = long_enough(scenario, HANG_LIMIT_S)
    history = run_isolated(scenario, task.features, time_limit_s=limit_s, host=task.host)
    reason = judge(history).reason
    if not ended_badly(reason) or hangs_as_known(history):
        return None
    return ending(reason)
