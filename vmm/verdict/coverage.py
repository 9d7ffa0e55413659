"""What a run has checked: every rule and every historic bug against the scenarios that ran.

Coverage is measured: a rule counts as checked if it decided at least one event on this kernel. Only
for a rule that decided none is the model asked which scenarios meet it on other kernels.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from vmm.host.hostinfo import HostInfo
from vmm.model.rule import Rule
from vmm.scenario.bugs import Bug, ShownBy
from vmm.scenario.features import Features
from vmm.verdict.judge import Difference, Status

Elsewhere = Callable[[], Mapping[str, Collection[str]]]
"""Returns, for each scenario by name, the rules that it meets on some kernel."""


class State(Enum):
    """The coverage of a rule or a bug; the values are what commands print."""

    CHECKED = "checked"
    DIFFERS = "differs"
    KNOWN = "known"
    NOT_HERE = "not here"
    NOT_RUN = "not run"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class RanScenario:
    """The result of one scenario, as far as coverage needs it."""

    name: str
    status: Status
    reason: str = ""
    rules: tuple[str, ...] = ()
    difference: Difference | None = None

    @property
    def broken(self) -> frozenset[str]:
        """The rules that the kernel broke."""
        if self.difference is None:
            return frozenset()
        return frozenset(expected.rule for expected in self.difference.expected)


@dataclass(frozen=True, slots=True)
class RanCheck:
    """A run of scenarios, as far as coverage needs it."""

    status: Status
    scenarios: tuple[RanScenario, ...]
    features: Features
    host: HostInfo


@dataclass(frozen=True, slots=True)
class RuleCoverage:
    """The coverage of a rule. ``why`` says why it is not checked; empty if it is."""

    rule: Rule
    state: State
    scenarios: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True, slots=True)
class BugCoverage:
    """The coverage of a bug: the scenarios that show it, each with its result."""

    bug: Bug
    state: State
    results: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """The coverage of every rule and every bug, and the host it was measured on."""

    rules: tuple[RuleCoverage, ...]
    bugs: tuple[BugCoverage, ...]
    host: HostInfo
    status: Status

    @property
    def unchecked(self) -> tuple[RuleCoverage, ...]:
        """The rules that apply to this kernel and that nothing has checked."""
        return tuple(each for each in self.rules if each.state in (State.NOT_RUN, State.GAP))

    @property
    def exit_status(self) -> int:
        """1 if the kernel differed, 3 if a rule that applies to this kernel is unchecked."""
        if self.unchecked and self.status.exit_status == 0:
            return Status.INCONCLUSIVE.exit_status
        return self.status.exit_status


def cover(
    result: RanCheck, rules: Sequence[Rule], bugs: Sequence[Bug], elsewhere: Elsewhere
) -> Coverage:
    """Return what a run has checked; ``elsewhere`` is called only if a rule decided no event."""
    outcomes = {each.name: each for each in result.scenarios}
    measured = {rule.name: _measured(rule, result.scenarios) for rule in rules}
    others = elsewhere() if None in measured.values() else {}
    return Coverage(
        tuple(measured[rule.name] or _explained(rule, outcomes, others) for rule in rules),
        tuple(_bug(bug, outcomes, result.features) for bug in bugs),
        result.host,
        result.status,
    )


def _measured(rule: Rule, outcomes: Sequence[RanScenario]) -> RuleCoverage | None:
    """Return what the run itself says about a rule; None if the rule decided nothing."""
    broken = [each for each in outcomes if rule.name in each.broken]
    if broken:
        known = all(each.status is Status.KNOWN for each in broken)
        state = State.KNOWN if known else State.DIFFERS
        return RuleCoverage(rule, state, tuple(each.name for each in broken))
    deciding = tuple(each.name for each in outcomes if rule.name in each.rules)
    return RuleCoverage(rule, State.CHECKED, deciding) if deciding else None


def _explained(
    rule: Rule, outcomes: Mapping[str, RanScenario], others: Mapping[str, Collection[str]]
) -> RuleCoverage:
    """Say why a rule decided nothing: by the scenarios that meet it on other kernels."""
    names = tuple(name for name, rules in others.items() if rule.name in rules)
    if not names:
        return RuleCoverage(rule, State.GAP, (), "no scenario meets it on any kernel")
    open_ones = [name for name in names if not _settled(outcomes.get(name))]
    if open_ones:
        return RuleCoverage(rule, State.NOT_RUN, names, _fate(open_ones[0], outcomes))
    skipped = [name for name in names if outcomes[name].status is Status.SKIPPED]
    if skipped:
        return RuleCoverage(rule, State.NOT_HERE, names, outcomes[skipped[0]].reason)
    return RuleCoverage(rule, State.NOT_HERE, names, "another rule decides it on this kernel")


def _settled(outcome: RanScenario | None) -> bool:
    return outcome is not None and outcome.status is not Status.INCONCLUSIVE


def _fate(name: str, outcomes: Mapping[str, RanScenario]) -> str:
    outcome = outcomes.get(name)
    return f"{name} {'did not run' if outcome is None else 'is inconclusive'}"


def _bug(bug: Bug, outcomes: Mapping[str, RanScenario], features: Features) -> BugCoverage:
    results = tuple(
        (shown.scenario, _result(shown, outcomes.get(shown.scenario), features))
        for shown in bug.shown_by
    )
    return BugCoverage(bug, _bug_state([status for _, status in results]), results)


def _result(shown: ShownBy, outcome: RanScenario | None, features: Features) -> str:
    """Return a scenario's status; a pass proves nothing if this host lacks what the bug needs."""
    if outcome is None:
        return State.NOT_RUN.value
    if outcome.status is Status.PASSED and features.missing(shown.needs):
        return State.NOT_HERE.value
    return outcome.status.value


def _bug_state(statuses: Sequence[str]) -> State:
    """Return the state for the gravest of the statuses; GAP if there are none."""
    for status, state in (
        (Status.DIFFERS.value, State.DIFFERS),
        (Status.KNOWN.value, State.KNOWN),
        (Status.PASSED.value, State.CHECKED),
        (Status.PASSES_NOW.value, State.CHECKED),
        (State.NOT_RUN.value, State.NOT_RUN),
        (Status.INCONCLUSIVE.value, State.NOT_RUN),
        (Status.SKIPPED.value, State.NOT_HERE),
        (State.NOT_HERE.value, State.NOT_HERE),
    ):
        if status in statuses:
            return state
    return State.GAP
