"""What a program checks: the model's allowed outcomes of each step, and what came where it ran."""

from collections.abc import Iterator
from dataclasses import dataclass

from vmm.model.allowed import Allowed
from vmm.model.model import Model
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, History
from vmm.scenario.operations import (
    GUEST_MAPPING,
    GUEST_SIZE_BYTES,
    AnyOperation,
    Mapping,
    Scenario,
    pages_of,
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


def mappings_of(scenario: Scenario) -> tuple[Mapping, ...]:
    """Return the mappings of a scenario, the guest's own last."""
    return (*scenario.mappings, Mapping(GUEST_MAPPING, pages_of(GUEST_SIZE_BYTES)))


def of_history(history: History) -> Iterator[Expectation]:
    """Yield the steps of a history, up to the first that differs."""
    scenario = history.header.scenario
    model = Model(mappings_of(scenario), history.header.features, scenario.vm_type)
    for event in history.events:
        allowed = model.allowed(event.operation)
        fitting = [each for each in allowed if each.outcome.admits(event.outcome)]
        chosen = fitting[0] if fitting else None
        yield Expectation(
            event.operation, allowed, chosen.outcome if chosen else None, event.outcome
        )
        if chosen is None and allowed:
            return
        if chosen is not None:
            chosen.adopt()


def of_scenario(scenario: Scenario, features: Features) -> Iterator[Expectation]:
    """Yield the steps of a scenario on a kernel that keeps every promise."""
    model = Model(mappings_of(scenario), features, scenario.vm_type)
    for step in steps(scenario, features.touch_limit):
        allowed = model.allowed(step.operation)
        if allowed:
            allowed[0].adopt()
        chosen = allowed[0].outcome if allowed else None
        yield Expectation(step.operation, allowed, chosen, None)
