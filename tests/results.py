"""A run with a result of every kind, and with hostile text, for tests of reports."""

import dataclasses
import errno

import msgspec

from tests.ideal import FEATURES, ideal_history
from tests.played import INFO, make, with_outcome
from vmm.host.health import Problem
from vmm.scenario.history import End, Refused
from vmm.scenario.operations import Scenario
from vmm.verdict.judge import Status, Verdict
from vmm.verdict.known.issue import KnownIssue
from vmm.verdict.result import Checked, Run, judged

HOSTILE = "bad\x1b[2J\nok 1 forged # SKIP\r<b>&amp; \ud800\u202e"
"""Text that a file or a kernel's log may contain."""

ISSUE = KnownIssue("an-issue", "", frozenset(("create",)), "w", "e")


def passed(name: str, *tags: str) -> Checked:
    """Return a pass."""
    return dataclasses.replace(judged(ideal_history(make(name, *tags))), seconds=0.0125)


def differs(name: str, *tags: str, why: str = "Why.") -> Checked:
    """Return a difference: the first call is refused."""
    scenario = msgspec.structs.replace(make(name, *tags), why=why)
    return judged(with_outcome(ideal_history(scenario), 0, Refused(errno.EEXIST)))


def ended(name: str, reason: str, *tags: str) -> Checked:
    """Return a result that is inconclusive for a reason."""
    history = ideal_history(make(name, *tags))
    cut = msgspec.structs.replace(history, events=history.events[:3], end=End(reason))
    return judged(cut)


def skipped(name: str, reason: str, *tags: str) -> Checked:
    """Return a skip."""
    return Checked(make(name, *tags), Verdict(name, Status.SKIPPED, reason))


def of_status(checked: Checked, status: Status, issue: KnownIssue | None = ISSUE) -> Checked:
    """Return a result as a known issue changes it."""
    reason = f"{ISSUE.name}: {ISSUE.what}"
    verdict = msgspec.structs.replace(checked.verdict, status=status, reason=reason)
    return dataclasses.replace(checked, verdict=verdict, issue=issue)


def crashed(name: str, *tags: str) -> Checked:
    """Return the result of a scenario that ended with an error of this program."""
    reason = "harness: Traceback (most recent call last):\n  in f\nAssertionError: oops"
    return Checked(make(name, *tags), Verdict(name, Status.INTERNAL_ERROR, reason))


def unhealthy(name: str, *tags: str, what: str = "WARNING: at mmu.c:1") -> Checked:
    """Return a pass during which the kernel complained."""
    problem = Problem(what, ("[ cut here ]", what, HOSTILE))
    return dataclasses.replace(passed(name, *tags), problems=(problem,))


EVERY_KIND = (
    passed("create-one", "create"),
    skipped("create-huge", "needs a huge page", "create"),
    differs("move-wrong", "move", why=HOSTILE),
    passed("create-two", "create"),
    of_status(differs("known-one", "dirty"), Status.KNOWN),
    of_status(passed("known-gone", "dirty"), Status.PASSES_NOW),
    ended("slow", "hung: no end within 20 s; kernel stack: none", "racing"),
    ended("killed", f"died: {HOSTILE}", "racing"),
    unhealthy("warned", "access"),
    crashed("our-fault", "access"),
    skipped("spaces-one", "needs KVM_CAP_X86_SMM", "spaces"),
)
LEFT: tuple[Scenario, ...] = (make("left-out", "move"),)


def run_of(*checked: Checked, not_run: tuple[Scenario, ...] = ()) -> Run:
    """Return a run with these results."""
    names = tuple(scenario.name for scenario in not_run)
    return Run(checked, FEATURES, INFO, ("the log is not readable",), names, (0, 1), 1.5)


def scenarios_of(run: Run, *left: Scenario) -> tuple[Scenario, ...]:
    """Return the scenarios of a run, those that did not run last."""
    return (*(checked.scenario for checked in run.checked), *left)
