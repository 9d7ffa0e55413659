"""Which known issues a scenario may meet, and what a verdict is in their light."""

from collections.abc import Callable, Mapping

import msgspec

from vmm.scenario.history import History
from vmm.scenario.operations import AnyOperation, Scenario
from vmm.scenario.underway import under_way
from vmm.verdict.judge import Status, Verdict
from vmm.verdict.known.issue import KnownIssue
from vmm.verdict.known.issues import KNOWN


def issues_met(
    scenario: Scenario,
    host: Mapping[str, str],
    among: Callable[[KnownIssue], bool] = lambda _: True,
) -> tuple[KnownIssue, ...]:
    """Return the issues, of those that ``among`` selects, that a scenario may meet on a host.

    ``host`` is what a history says of the host; its ``vendor`` is the module under /sys/module that
    runs its guests.
    """
    possible = [
        known
        for known in KNOWN
        if not known.everywhere and known.concerns(host) and among(known.issue)
    ]
    kinds = frozenset(map(type, scenario.operations)) if possible else frozenset()
    return tuple(
        known.issue
        for known in possible
        if not known.kinds.isdisjoint(kinds) and known.meets(scenario)
    )


def weighed(verdict: Verdict, history: History) -> tuple[Verdict, KnownIssue | None]:
    """Return the verdict as a known issue changes it, and that issue: None if none applies."""
    scenario, host = history.header.scenario, history.header.host
    emulates = history.header.features.emulates_real_mode

    def may_show(issue: KnownIssue) -> bool:
        return not (emulates and issue.natively)

    if verdict.status is Status.PASSED:
        vendor = host.get("vendor")
        for issue in issues_met(
            scenario, host, lambda issue: issue.vendor == vendor != "" and may_show(issue)
        ):
            reason = f"{issue.name} does not show any more"
            return _as(verdict, Status.PASSES_NOW, reason), issue
        return verdict, None
    place = _place(verdict, history)
    if place is None:
        return verdict, None
    for known in KNOWN:
        issue = known.issue
        if (
            issue.is_seen_in(verdict)
            and may_show(issue)
            and known.concerns(host)
            and (known.everywhere is None or known.everywhere(history.header))
            and known.shows_at(scenario, *place)
            and known.meets(scenario)
        ):
            return _as(verdict, Status.KNOWN, f"{issue.name}: {issue.what}"), issue
    return verdict, None


def _as(verdict: Verdict, status: Status, reason: str) -> Verdict:
    return msgspec.structs.replace(verdict, status=status, reason=reason)


def _place(verdict: Verdict, history: History) -> tuple[int, AnyOperation] | None:
    """Return the operation that differed or did not return, and its origin."""
    if verdict.status is Status.DIFFERS and verdict.difference is not None:
        event = history.events[verdict.difference.event]
        return event.origin, event.operation
    if verdict.under_way is not None:
        first, *_ = under_way(history)
        return first.origin, first.operation
    return None
