"""Runs one scenario on the real kernel in this process, and judges it.

A fork for each scenario would cost more than the scenario. The caller must be a process that may
hang or die with the kernel, and that another one watches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from vmm.execution.executor import Recorder, execute
from vmm.fuzz.novelty import Novelty
from vmm.kvm.system import Kvm
from vmm.scenario.features import Features
from vmm.scenario.history import Event, Header, History
from vmm.scenario.operations import Scenario
from vmm.verdict.identity import Identity
from vmm.verdict.judge import Judgement, Status, Verdict
from vmm.verdict.known.weighing import weighed


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of a scenario, judged up to the first difference.

    ``is_known`` says that the difference is an issue which this host is known to have.
    """

    verdict: Verdict
    events: int
    is_known: bool = False

    @property
    def identity(self) -> Identity | None:
        """The identity of the difference; None if there is none."""
        return None if self.verdict.difference is None else self.verdict.difference.identity


def attempt(
    kvm: Kvm,
    scenario: Scenario,
    features: Features,
    novelty: Novelty | None = None,
    host: dict[str, str] | None = None,
) -> Trial:
    """Run a scenario in a new VM and judge it up to the first difference.

    ``host`` is what a history says of it; without it no issue is known.
    """
    events: list[Event] = []
    reason = execute(kvm, scenario, features.touch_limit, Recorder(events.append))
    return judged(Header(scenario, features, host or {}), events, novelty, reason)


def judged(
    header: Header, events: Sequence[Event], novelty: Novelty | None = None, reason: str = ""
) -> Trial:
    """Judge events up to the first difference; ``reason`` says why they ended early."""
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


def shortened(scenario: Scenario, trial: Trial) -> Scenario:
    """Return a scenario without the operations after the one that differed.

    One with a survey is not changed: where a survey looks depends on all operations.
    """
    if trial.verdict.difference is None or scenario.survey != "none":
        return scenario
    operations = scenario.operations[: trial.verdict.difference.origin + 1]
    return msgspec.structs.replace(scenario, operations=operations)
