"""What a known issue is, and how it is told from any other difference."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vmm.host.health import Problem
from vmm.model.rule import Rule
from vmm.scenario.endings import ENDLESS, HUNG
from vmm.scenario.history import Header
from vmm.scenario.operations import AnyOperation, Scenario
from vmm.verdict.judge import Verdict

NOT_BACK = (HUNG, ENDLESS)
"""How the reason of a run begins in which a call did not return, or no guest ended."""

UNKNOWN_VENDOR = "unknown"
"""The vendor in the history of a host on which nobody can tell which module runs its guests."""

_WARNED = re.compile(r"the kernel is newly tainted \(W: [^;]*\)|warn_count went from \d+ to \d+")
"""What the taint and warning counters say of a warning, besides its text in the kernel log."""


def names(*rules: Rule) -> frozenset[str]:
    """Return the names of rules, as files have them."""
    return frozenset(rule.name for rule in rules)


@dataclass(frozen=True, slots=True)
class KnownIssue:
    """A difference that is expected of some scenarios where the module ``vendor`` runs the guests.

    An empty ``vendor`` means a bug in KVM itself: any kernel may have it, and one that does not is
    not reported.

    ``rules`` are those that the kernel breaks; ``what`` says what is wrong, and ``evidence`` how
    that is known. ``log`` is a regular expression for the line by which the kernel complains of it
    (empty: it does not). ``outcome`` is the kind of outcome that is observed (empty: any). An issue
    that ``hangs`` breaks no rule: a call does not return.

    >>> from vmm import curated_scenarios, run_scenario
    >>> run_scenario(next(curated_scenarios("move-up"))).issue is None
    True
    """

    name: str
    vendor: str
    rules: frozenset[str]
    what: str
    evidence: str
    log: str = ""
    outcome: str = ""
    hangs: bool = False

    def is_seen_in(self, verdict: Verdict) -> bool:
        """Whether a scenario failed by this issue, and nothing else. Raises nothing.

        >>> from vmm import KnownIssue, Status, Verdict
        >>> issue = KnownIssue("x", "kvm_amd", frozenset({"hole"}), "what", "evidence")
        >>> issue.is_seen_in(Verdict("move-up", Status.PASSED))
        False
        """
        found = verdict.difference
        if found is None:
            return self.hangs and verdict.reason.startswith(NOT_BACK)
        if self.hangs or self.outcome not in ("", found.identity.outcome):
            return False
        return {each.rule for each in found.expected} <= self.rules

    def concerns(self, host: Mapping[str, str]) -> bool:
        """Whether the module that runs a host's guests has this, or may have it. Raises nothing.

        Where nobody can tell which module that is (a host without /sys), it may.

        >>> from vmm import KnownIssue
        >>> issue = KnownIssue("x", "kvm_amd", frozenset({"hole"}), "what", "evidence")
        >>> issue.concerns({"vendor": "kvm_intel"})
        False
        """
        return self.vendor in ("", host.get("vendor")) or host.get("vendor") == UNKNOWN_VENDOR

    def unexplained(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        """Return the kernel's complaints that this issue does not account for. Raises nothing.

        >>> from vmm import KnownIssue, Problem
        >>> issue = KnownIssue("x", "", frozenset(), "what", "evidence", log="a stale slot")
        >>> issue.unexplained([Problem("WARNING", ("kvm: a stale slot",))])
        ()
        """
        if not self.log:
            return tuple(problems)
        told = [each for each in problems if each.excerpt]
        others = [each for each in told if not any(re.search(self.log, x) for x in each.excerpt)]
        if others:
            return tuple(problems)
        return tuple(
            each for each in problems if not each.excerpt and not _WARNED.fullmatch(each.what)
        )


def anywhere(_header: Header) -> bool:
    """Whether a host may have an issue that any may have."""
    return True


class Known(NamedTuple):
    """An issue, whether a scenario meets it, and whether it may show at an operation.

    Only a scenario with an operation of one of the ``kinds`` can meet it. One without kinds may
    show in any scenario, and is expected of none.

    ``where`` says of the header of a history whether its host may have the issue, as far as that
    does not depend on the module that runs its guests.
    """

    issue: KnownIssue
    kinds: frozenset[type[AnyOperation]]
    meets: Callable[[Scenario], bool]
    shows_at: Callable[[Scenario, int, AnyOperation], bool]
    where: Callable[[Header], bool] = anywhere

    def concerns(self, header: Header) -> bool:
        """Whether the host of a history has the issue, or may have it."""
        return self.issue.concerns(header.host) and self.where(header)


def known_at(
    issue: KnownIssue,
    kind: type[AnyOperation],
    places: Callable[[Scenario], Iterator[int]],
    where: Callable[[Header], bool] = anywhere,
) -> Known:
    """Return an issue that may show at operations of one kind: ``places`` yields their indices."""

    def meets(scenario: Scenario) -> bool:
        return next(places(scenario), None) is not None

    def shows_at(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
        return isinstance(op, kind) and origin in places(scenario)

    return Known(issue, frozenset((kind,)), meets, shows_at, where)
