"""Confirms a result in a new process, in which KVM was never used.

Minimising tries thousands of scenarios in one process, and what the kernel remembers of those can
make the difference. If the result does not differ in a new process, the scenario is minimised
again, with a process for each try, so that a program that does nothing else shows it. If it differs
in no such process, it is joined with what ran before it (``join.py``).
"""

import os
import signal
import sys
from contextlib import suppress
from itertools import chain
from multiprocessing.connection import Connection

import msgspec

from vmm.execution.runner import HarnessError, long_enough, run_isolated
from vmm.fuzz.messages import failed, send
from vmm.fuzz.minimise.join import joins
from vmm.fuzz.minimise.process import Task, minimise, steady_cause
from vmm.fuzz.trial import judged
from vmm.host.child import Child
from vmm.host.cpus import stay_on
from vmm.scenario.endings import why_failed
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.verdict.identity import Identity

_TRY_LIMIT_S = 10.0


class Doubt(msgspec.Struct, frozen=True):
    """What to confirm: ``best``, the result of minimising ``task``.

    ``is_sure`` says that it differed in every run. ``others`` are further scenarios that differed
    in this way when they were found; ``before`` is what ran before the first of them.
    """

    best: Scenario
    is_sure: bool
    task: Task
    others: tuple[Scenario, ...]
    before: tuple[Scenario, ...] = ()


def confirm(doubt: Doubt) -> Child:
    """Start the process. It sends what a minimiser sends, or nothing if the result is confirmed."""
    child = Child.start(_begin_anew, explain=why_failed)
    with suppress(BrokenPipeError):  # It was killed: the caller sees the end of its messages.
        child.connection.send_bytes(msgspec.json.encode(doubt))
    return child


def _begin_anew(to: Connection) -> None:
    os.set_inheritable(to.fileno(), True)
    os.execv(sys.executable, [sys.executable, "-P", "-m", __name__, str(to.fileno())])


def _serve(to: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # The parent handles it.
    doubt = msgspec.json.decode(to.recv_bytes(), type=Doubt)
    task = doubt.task
    stay_on({task.cpu})

    def identity_of(scenario: Scenario) -> Identity | None:
        return _identity_of(scenario, task.features, task.host)

    try:
        if doubt.is_sure and steady_cause(identity_of, doubt.best) == task.cause:
            return
        joined = joins(doubt.before, task.scenario)
        for scenario in chain((task.scenario, *doubt.others), joined):
            cause = steady_cause(identity_of, scenario)
            if cause:  # Maybe another: which difference is first can depend on what ran before.
                again = msgspec.structs.replace(task, scenario=scenario, identity=cause)
                minimise(again, to, identity_of)
                return
    except Exception as error:
        send(to, failed(error, task.scenario))


def _identity_of(scenario: Scenario, features: Features, host: dict[str, str]) -> Identity | None:
    """Return the identity of the difference that a scenario shows in a process of its own."""
    try:
        limit_s = long_enough(scenario, _TRY_LIMIT_S)
        history = run_isolated(scenario, features, time_limit_s=limit_s, host=host)
    except HarnessError:
        return None
    trial = judged(history.header, history.events)
    return None if trial.is_known else trial.identity


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
