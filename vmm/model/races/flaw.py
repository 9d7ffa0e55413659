"""What is wrong in a race, as data."""

from collections.abc import Iterable
from dataclasses import dataclass

from vmm.model.allowed import Allowed
from vmm.model.rule import Rule
from vmm.scenario.history import AnyOutcome
from vmm.scenario.operations import AnyOperation

Expectation = tuple[AnyOutcome, Rule]
"""An outcome that would have been right, and the rule that says so."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """An operation within a race whose outcome no rule allows, and its interval.

    ``note`` says where in the race it is, and what else was in progress.
    """

    operation: AnyOperation
    interval: tuple[int, int]
    expected: tuple[Expectation, ...]
    observed: AnyOutcome
    note: str = ""


def allowing(allowed: Iterable[Allowed]) -> tuple[Expectation, ...]:
    """Return allowed outcomes as expectations."""
    return tuple((each.outcome, each.rule) for each in allowed)
