"""Judge a history: find the first event whose outcome no rule allows."""

from collections.abc import Iterator
from copy import deepcopy
from enum import Enum

import msgspec

from vmm.model.allowed import Allowed
from vmm.model.kernelside import KernelSide
from vmm.model.kernelslots import KernelFlaw
from vmm.model.model import Followed, Model
from vmm.model.races.flaw import Flaw
from vmm.model.regions import Memslot
from vmm.model.rule import Rule, documented
from vmm.scenario import outcomewords, words
from vmm.scenario.endings import HARNESS, HOST, KERNEL_SHORT, KERNEL_SHORT_NAMES
from vmm.scenario.expected import answer
from vmm.scenario.features import Features
from vmm.scenario.history import (
    AnyOutcome,
    Done,
    End,
    Event,
    Header,
    History,
    Raced,
    Refused,
    SetUpRefused,
    Stopped,
)
from vmm.scenario.operations import AnyOperation, GuestOperation
from vmm.scenario.plan import Step, mappings_of, steps
from vmm.scenario.underway import under_way
from vmm.verdict import statuses
from vmm.verdict.identity import Identity, outcome_kind
from vmm.verdict.refusals import Refusals, RefusedCalls
from vmm.verdict.slotmap import slot_map_near
from vmm.verdict.steps import StepRecorder

_MAP_LINES = 24
_BIT_EVENTS = 64

SET_UP = documented(
    "set-up",
    "what every VMM needs to run a guest is not refused: VMs, vCPUs and their registers",
    "api.rst 4",
)
"""Not a rule of the model: only a call that belongs to no operation can break it."""


MISTAKEN = "the kernel does what the rules allow, but not what the scenario expects: "
"""Prefix of the verdict's reason where the rules contradict the ``expect`` of a scenario."""


class Status(Enum):
    """What a verdict says; the values are what commands print.

    >>> from vmm import Status
    >>> Status.DIFFERS.value, Status.DIFFERS.exit_status
    ('differs', 1)
    """

    PASSED = "passed"
    DIFFERS = "differs"
    INCONCLUSIVE = "inconclusive"
    INTERNAL_ERROR = "internal error"
    SKIPPED = "skipped"
    KNOWN = "known"
    PASSES_NOW = "passes now"

    @property
    def exit_status(self) -> int:
        """The exit status of a command with this result."""
        match self:
            case Status.PASSED | Status.KNOWN | Status.PASSES_NOW:
                return statuses.PASSED
            case Status.DIFFERS:
                return statuses.DIFFERS
            case Status.INCONCLUSIVE:
                return statuses.INCONCLUSIVE
            case Status.INTERNAL_ERROR:
                return statuses.INTERNAL_ERROR
            case Status.SKIPPED:
                return statuses.NOTHING_RAN


class Expected(msgspec.Struct, frozen=True):
    """One outcome that would have been right, and the rule that allows it: see `Difference`.

    >>> from vmm import Expected
    >>> Expected("EINVAL", "delete-absent", "deleting an absent slot is EINVAL", "", "").outcome
    'EINVAL'
    """

    outcome: str
    rule: str
    promise: str
    basis: str
    cite: str


class Difference(msgspec.Struct, frozen=True):
    """The first event at which the kernel differs from the model.

    ``event`` is an index into the history's events, ``origin`` into the scenario's operations (-1:
    before the first). ``slot_map`` lists the slots that exist then according to the model.

        >>> from msgspec.structs import replace
        >>> from vmm import Scenario, history, judge, operations, record_scenario
        >>> deletion = operations.SetUserMemoryRegion(slot=7)
        >>> right = record_scenario(Scenario("absent", (deletion,), survey="none"))
        >>> events = (
        ...     replace(each, outcome=history.Done()) if each.operation == deletion else each
        ...     for each in right.events
        ... )
        >>> found = judge(replace(right, events=tuple(events))).difference
        >>> found.origin, found.observed, [each.rule for each in found.expected]
        (0, 'success', ['delete-absent'])
    """

    event: int
    origin: int
    operation: str
    expected: tuple[Expected, ...]
    observed: str
    slot_map: tuple[str, ...]
    identity: Identity = Identity("")


class UnderWay(msgspec.Struct, frozen=True):
    """What was under way when a history broke off; ``origin`` as in `Difference`.

    ``more`` is how many touches after this one belong to the same KVM_RUN.

        >>> from msgspec.structs import replace
        >>> from vmm import Scenario, judge, operations, record_scenario
        >>> deletion = operations.SetUserMemoryRegion(slot=7)
        >>> whole = record_scenario(Scenario("absent", (deletion,), survey="none"))
        >>> events = tuple(event for event in whole.events if event.origin < 0)
        >>> judge(replace(whole, events=events, end=None)).under_way.origin
        0
    """

    origin: int
    operation: str
    more: int = 0


class Verdict(msgspec.Struct, frozen=True):
    """The verdict on one scenario on one kernel.

    ``rules`` are those that decided at least one event; ``events`` is how many were judged.
    ``refused`` counts the region calls that the kernel rightly refused, by errno and rule.

        >>> from vmm import Scenario, operations, run_scenario
        >>> deletion = operations.SetUserMemoryRegion(slot=7)
        >>> verdict = run_scenario(Scenario("absent", (deletion,))).verdict
        >>> verdict.status.value, [refused.rule for refused in verdict.refused]
        ('passed', ['delete-absent'])
    """

    scenario: str
    status: Status
    reason: str = ""
    difference: Difference | None = None
    events: int = 0
    rules: tuple[str, ...] = ()
    under_way: UnderWay | None = None
    refused: tuple[RefusedCalls, ...] = ()


def judge(history: History) -> Verdict:
    """Return the verdict on a history, judged as far as it goes. Needs no kernel.

    Raises nothing: where the model does not know, the status is `Status.INCONCLUSIVE`.

    >>> from vmm import Scenario, Status, operations, record_scenario
    >>> history = record_scenario(Scenario("a-hole", (operations.Touch(gpa=0x5000),)))
    >>> judge(history).status is Status.PASSED
    True
    """
    *_, verdict = judging(history)
    assert verdict is not None
    return verdict


def judging(history: History, recorder: StepRecorder | None = None) -> Iterator[Verdict | None]:
    """Judge a history in parts: yield None after each part but the last, then the verdict.

    A ``recorder`` is given every event that is judged. An event out of sequence (one before it is
    missing, or it is repeated or reordered) ends the judging: the state is unknown from there.
    """
    judgement = Judgement(history.header)
    plan = steps(history.header.scenario, history.header.features.touch_limit)
    for number, event in enumerate(history.events, 1):
        if not judgement.is_in_place(event, next(plan, None)):
            break
        if recorder is not None and recorder.origin != event.origin:
            recorder.before(event, judgement.slots())
        is_right = judgement.admits(event)
        if recorder is not None:
            recorder.add(event, judgement.rule if is_right else None)
        if not is_right:
            break
        if number % _BIT_EVENTS == 0:
            yield None
    else:
        judgement.ended(history.end, next(plan, None))
    if recorder is not None:
        recorder.end(judgement.slots())
    yield _with_under_way(history, judgement)


def _with_under_way(history: History, judgement: "Judgement") -> Verdict:
    verdict = judgement.verdict(None if history.end is None else history.end.reason)
    begun = under_way(history)
    if not begun:
        return verdict
    text = words.operation(begun[0].operation)
    return msgspec.structs.replace(
        verdict, under_way=UnderWay(begun[0].origin, text, len(begun) - 1)
    )


class Judgement:
    """Judges one history, event by event."""

    def __init__(self, header: Header) -> None:
        self._name = header.scenario.name
        self._mappings = mappings_of(header.scenario)
        self._model = Model.of(header)
        self._kernel_side = KernelSide(self._model)
        self._rules: set[str] = set()
        self._refusals = Refusals()
        self._events = 0
        self._position = 0
        self._difference: Difference | None = None
        self._unknown = ""
        self._mistaken = ""
        self.rule = ""
        """The rule that decided the last event; empty for a race, which many rules decide."""

    def slots(self) -> Iterator[Memslot]:
        """Yield the slots that exist now, by as_id and then from the highest gfn down."""
        return (slot for space in self._model.spaces for slot in space)

    def allowed(self, operation: AnyOperation) -> tuple[Allowed, ...]:
        """Return what the model allows as the outcome of an operation that comes next."""
        return self._model.allowed(operation)

    def supposing(self, features: Features) -> "Judgement":
        """Return a copy that goes on with other features, but with as many address spaces."""
        return deepcopy(self, {id(self._model.features): features})

    def is_in_place(self, event: Event, step: Step | None) -> bool:
        """Whether an event belongs to the next step; if not, the verdict is inconclusive.

        The VMs are closed after the last step, and the refusal of that may follow it.
        """
        if step is None and isinstance(event.outcome, SetUpRefused):
            return True
        if step is not None and step.origin == event.origin and step.operation == event.operation:
            return True
        due = "nothing" if step is None else words.operation(step.operation)
        found = words.operation(event.operation)
        self._unknown = (
            f"event {self._position} is out of sequence: {found}, where {due} is due: the history "
            "has a hole, or another version planned it"
        )
        return False

    def ended(self, end: End | None, step: Step | None) -> None:
        """Note if a history that claims to be complete lacks ``step``, which was due next."""
        if end is not None and not end.reason and step is not None and self._difference is None:
            self._unknown = (
                "the history claims to be complete, but ends before "
                f"{words.operation(step.operation)}"
            )

    def admits(self, event: Event) -> bool:
        """Judge the next event; return False if the model cannot go on after it."""
        if isinstance(event.outcome, SetUpRefused):
            self._set_up_refused(event, event.outcome)
            return False
        if event.kernel is not None:
            self._kernel_side.before(event)
        followed = self._model.follow(event)
        self._position += 1
        if followed.chosen is not None:
            rule = followed.chosen.rule
            self.rule = rule.name
            self._rules.add(self.rule)
            self._events += 1
            if isinstance(event.outcome, Refused):
                self._refusals.note(event, rule)
            if event.operation.expect:
                self._compare(event, followed)
            return event.kernel is None or self._holds_rightly(event, rule)
        if followed.raced:
            self.rule = ""
            self._rules.update(rule.name for rule in followed.raced)
            self._refusals.note(event, None)
            self._events += 1 + _parts(event.outcome)
        elif followed.flaw is not None:
            self._difference = self._flawed(event, followed.flaw)
        elif _ran_short(event.outcome, followed.allowed):
            text = outcomewords.outcome(event.outcome, self._mappings)
            self._unknown = f"{HOST}{words.operation(event.operation)}: {text}"
        elif followed.allowed:
            self._difference = self._differing(event, followed.allowed)
        elif isinstance(event.outcome, Raced):
            self._unknown = "the model does not know which memory the guests of this race reach"
        else:
            self._unknown = self._not_known(event.operation)
        return followed.fits

    def _compare(self, event: Event, followed: Followed) -> None:
        """Note the first call whose ``expect`` differs from an outcome that the model allows."""
        expected, observed = event.operation.expect, answer(event.outcome)
        if expected == observed or self._mistaken or followed.chosen is None:
            return
        too = any(answer(each.outcome) == expected for each in followed.allowed)
        what = words.operation(event.operation)
        self._mistaken = (
            f"{MISTAKEN}operation {event.origin}, {what}, gave {observed}, and its `expect` says "
            f"{expected}: the rules allow {'either' if too else observed} "
            f"(by {followed.chosen.rule.name})"
        )

    def _not_known(self, operation: AnyOperation) -> str:
        """Return the reason of a verdict on what the model does not know."""
        why = self._model.why_unknown(operation)
        what = words.operation(operation)
        return f"the model does not know: {what}{f' ({why})' if why else ''}"

    def _set_up_refused(self, event: Event, outcome: SetUpRefused) -> None:
        observed = outcomewords.outcome(outcome, self._mappings)
        if outcome.errno in KERNEL_SHORT:
            self._unknown = f"{HOST}{observed}"
            return
        if isinstance(event.operation, GuestOperation) and not self.allowed(event.operation):
            # What the guest did may be why, as an SMI whose state finds no memory.
            self._unknown = self._not_known(event.operation)
            return
        self._difference = Difference(
            self._events,
            event.origin,
            words.operation(event.operation),
            (self._expected(Done(), SET_UP),),
            observed,
            self._slot_map(event.operation),
            Identity(outcome.call, (SET_UP.name,), outcome_kind(outcome)),
        )

    def verdict(self, end: str | None) -> Verdict:
        """Return the verdict. ``end`` says why the run ended: "" normally, None if cut off."""
        reason = self._unknown or ("the history is cut off" if end is None else end)
        reason = reason or self._mistaken
        if self._difference is not None:
            status, reason = Status.DIFFERS, ""
        else:
            status = Status.INCONCLUSIVE if reason else Status.PASSED
            if reason.startswith(HARNESS):
                status = Status.INTERNAL_ERROR
        return Verdict(
            self._name,
            status,
            reason,
            self._difference,
            self._events,
            tuple(sorted(self._rules)),
            refused=self._refusals.counted(),
        )

    def _differing(self, event: Event, allowed: tuple[Allowed, ...]) -> Difference:
        return Difference(
            self._position - 1,
            event.origin,
            words.operation(event.operation),
            tuple(self._expected(each.outcome, each.rule) for each in allowed),
            outcomewords.outcome(event.outcome, self._mappings)
            + outcomewords.amiss(event.outcome, [each.outcome for each in allowed]),
            self._slot_map(event.operation),
            Identity.of(event.operation, (each.rule for each in allowed), event.outcome),
        )

    def _flawed(self, event: Event, flaw: Flaw) -> Difference:
        begin, end = flaw.interval
        what = words.operation(flaw.operation)
        return Difference(
            self._position - 1,
            event.origin,
            "; ".join(filter(None, (what, f"moments {begin} to {end}", flaw.note))),
            tuple(self._expected(*expectation) for expectation in flaw.expected),
            outcomewords.outcome(flaw.observed, self._mappings),
            self._slot_map(event.operation),
            Identity.of(event.operation, (rule for _, rule in flaw.expected), flaw.observed),
        )

    def _holds_rightly(self, event: Event, decided: Rule) -> bool:
        flaw = self._kernel_side.flaw(event, decided)
        self._rules.update(self._kernel_side.rules)
        if flaw is not None:
            self._difference = self._held_wrongly(event, flaw)
        return flaw is None

    def _held_wrongly(self, event: Event, flaw: KernelFlaw) -> Difference:
        rule = flaw.rule
        return Difference(
            self._position - 1,
            event.origin,
            words.operation(event.operation),
            (Expected(flaw.expected, rule.name, rule.promise, rule.basis, rule.cite),),
            flaw.observed,
            self._slot_map(event.operation),
            Identity(type(event.operation).__name__, (rule.name,), "kernel"),
        )

    def _slot_map(self, operation: AnyOperation) -> tuple[str, ...]:
        """Return a line for each slot; of many slots, for those nearest to the operation."""
        return tuple(slot_map_near(operation, self._model.spaces, _MAP_LINES))

    def _expected(self, outcome: AnyOutcome, rule: Rule) -> Expected:
        text = outcomewords.outcome(outcome, self._mappings)
        return Expected(text, rule.name, rule.promise, rule.basis, rule.cite)


def _parts(outcome: AnyOutcome) -> int:
    """Return how many calls and windows a race has."""
    return sum(map(len, (*outcome.calls, *outcome.windows))) if isinstance(outcome, Raced) else 0


def _ran_short(outcome: AnyOutcome, allowed: tuple[Allowed, ...]) -> bool:
    """Whether the kernel ran out of a resource, where it could have succeeded."""
    if isinstance(outcome, Stopped):
        return outcome.reason in KERNEL_SHORT_NAMES
    return (
        isinstance(outcome, Refused)
        and outcome.errno in KERNEL_SHORT
        and not all(isinstance(each.outcome, Refused) for each in allowed)
    )
