"""One scenario on the real kernel, judged, in this very process.

A fork for each scenario would cost more than the scenario. Whoever calls this is a process that
may hang or die with the kernel, and that somebody watches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from vmm.execution.executor import execute
from vmm.fuzz.novelty import Novelty
from vmm.kvm.system import Kvm
from vmm.scenario.features import Features
from vmm.scenario.history import Event, Header, History
from vmm.scenario.operations import Scenario
from vmm.verdict.identity import Identity
from vmm.verdict.judge import Judgement, Status, Verdict
from vmm.verdict.known_issues import weighed


@dataclass(frozen=True, slots=True)
class Trial:
    """The outcome of a scenario, judged up to the first difference.

    It ``is_known`` if that is an issue which the host is known to have.
    """

    verdict: Verdict
    events: int
    is_known: bool = False

    @property
    def identity(self) -> Identity | None:
        """The kind of difference; None if there is none."""
        return None if self.verdict.difference is None else self.verdict.difference.identity


def attempt(
    kvm: Kvm,
    scenario: Scenario,
    features: Features,
    novelty: Novelty | None = None,
    host: dict[str, str] | None = None,
) -> Trial:
    """Run a scenario in a fresh VM and judge it up to the first difference.

    ``host`` is what a history says of it; without it nothing is known to be wrong.
    """
    events: list[Event] = []
    reason = execute(kvm, scenario, features.touch_limit, events.append, _nothing)
    return judged(Header(scenario, features, host or {}), events, novelty, reason)


def judged(
    header: Header, events: Sequence[Event], novelty: Novelty | None = None, reason: str = ""
) -> Trial:
    """Judge what happened up to the first difference; ``reason`` says why it ended early."""
    judgement = Judgement(header)
    for event in events:
        if not judgement.admits(event):
            break
        if novelty is not None:
            novelty.see(event, judgement.rule)
    verdict = judgement.verdict(reason)
    is_known = False
    if verdict.difference is not None and header.host:
        history = History(header, tuple(events), None)
        is_known = weighed(verdict, history)[0].status is Status.KNOWN
    return Trial(verdict, len(events), is_known)


def _nothing() -> None:
    """Nothing has to be made safe: the intent journal names the scenario."""


def shortened(scenario: Scenario, trial: Trial) -> Scenario:
    """Return a scenario without what it does after the operation that differed.

    One with a survey is returned as it is: where a survey looks is up to all of its operations.
    """
    if trial.verdict.difference is None or scenario.survey != "none":
        return scenario
    operations = scenario.operations[: trial.verdict.difference.origin + 1]
    return msgspec.structs.replace(scenario, operations=operations)
