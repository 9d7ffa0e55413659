"""What a program checks: the outcomes that the model allows at each step, and those observed."""

from collections.abc import Iterator
from dataclasses import dataclass

from vmm.model.allowed import Allowed
from vmm.model.model import Model
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, Header, History
from vmm.scenario.operations import (
    AnyOperation,
    Scenario,
)
from vmm.scenario.plan import steps


@dataclass(frozen=True, slots=True)
class Expectation:
    """A step and its allowed outcomes; ``chosen`` is the one that later steps build on.

    ``came`` is None where the step was not run.
    """

    operation: AnyOperation
    allowed: tuple[Allowed, ...]
    chosen: AnyOutcome | None
    came: AnyOutcome | None

    @property
    def is_unknown(self) -> bool:
        """Whether the model does not know what may come of it, nor of what follows."""
        return not self.allowed


def of_history(history: History) -> Iterator[Expectation]:
    """Yield the steps of a history, up to the first that differs or is unknown."""
    model = Model.of(history.header)
    for event in history.events:
        followed = model.follow(event)
        chosen = followed.chosen.outcome if followed.chosen else None
        yield Expectation(event.operation, followed.allowed, chosen, event.outcome)
        if not followed.fits:
            return


def of_scenario(scenario: Scenario, features: Features) -> Iterator[Expectation]:
    """Yield the steps of a scenario on a kernel that keeps every promise, up to an unknown one."""
    model = Model.of(Header(scenario, features))
    for step in steps(scenario, features.touch_limit):
        allowed = model.prefer(step.operation)
        yield Expectation(step.operation, allowed, allowed[0].outcome if allowed else None, None)
        if not allowed:
            return
