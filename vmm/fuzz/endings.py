"""Runs that hung or died: their kind takes the place of a difference's identity."""

from vmm.execution.runner import HarnessError, long_enough, run_isolated
from vmm.scenario.features import Features
from vmm.scenario.history import Header, History
from vmm.scenario.operations import Scenario
from vmm.verdict.identity import Identity
from vmm.verdict.judge import Status, judge
from vmm.verdict.known.issue import KnownIssue
from vmm.verdict.known.weighing import issues_met, weighed

HANG_LIMIT_S = 5.0
"""How long a scenario may take that is run again since it hung."""

_ENDINGS = ("hung", "died")


def ended_badly(reason: str) -> bool:
    """Whether a reason says that a run hung or died."""
    return reason.startswith(_ENDINGS)


def ending(reason: str) -> Identity:
    """Return the identity of a run that hung or died: the first word of the reason."""
    return Identity(reason.partition(":")[0])


def is_ending(identity: Identity) -> bool:
    """Whether this is the identity of a run that hung or died."""
    return identity.operation in _ENDINGS


def known_hang(
    scenario: Scenario, features: Features, host: dict[str, str], time_limit_s: float = HANG_LIMIT_S
) -> KnownIssue | None:
    """Return the issue by which a scenario that hung hangs again; None if it is not a known one.

    Only one that may meet such an issue is run again, in a process of its own.
    """
    if not issues_met(Header(scenario, features, host), lambda issue: issue.hangs):
        return None
    limit_s = long_enough(scenario, time_limit_s)
    try:
        history = run_isolated(scenario, features, time_limit_s=limit_s, host=host)
    except HarnessError:
        return None
    return hangs_as_known(history)


def hangs_as_known(history: History) -> KnownIssue | None:
    """Return the known issue by which a call did not return; None if it is not one."""
    verdict, issue = weighed(judge(history), history)
    return issue if verdict.status is Status.KNOWN and issue is not None and issue.hangs else None
