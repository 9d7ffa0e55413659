"""Which known issues a scenario may meet, and what a verdict is in their light."""

from collections.abc import Callable

import msgspec

from vmm.scenario.history import Header, History
from vmm.scenario.operations import AnyOperation
from vmm.scenario.underway import under_way
from vmm.verdict.judge import Status, Verdict
from vmm.verdict.known.issue import KnownIssue
from vmm.verdict.known.issues import KNOWN


def issues_met(
    header: Header, among: Callable[[KnownIssue], bool] = lambda _: True
) -> tuple[KnownIssue, ...]:
    """Return the issues, of those that ``among`` selects, that a scenario may meet on a host.

    The header is that of its history. What it says of the host may be little; its ``vendor`` is the
    module under /sys/module that runs the host's guests.
    """
    possible = [known for known in KNOWN if known.concerns(header) and among(known.issue)]
    kinds = frozenset(map(type, header.scenario.operations)) if possible else frozenset()
    return tuple(
        known.issue
        for known in possible
        if not known.kinds.isdisjoint(kinds) and known.meets(header.scenario)
    )


def weighed(verdict: Verdict, history: History) -> tuple[Verdict, KnownIssue | None]:
    """Return the verdict as a known issue changes it, and that issue: None if none applies."""
    header = history.header
    if verdict.status is Status.PASSED:
        vendor = header.host.get("vendor")
        for issue in issues_met(header, lambda issue: issue.vendor == vendor != ""):
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
            and known.concerns(header)
            and known.shows_at(header.scenario, *place)
            and known.meets(header.scenario)
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
