"""An outcome that the rules allow."""

from collections.abc import Callable
from dataclasses import dataclass

from vmm.memslots.history import AnyOutcome


def nothing() -> None:
    """The effect of an outcome that changes nothing."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """An outcome, the name of the rule that allows it, and what it does to the model's state."""

    outcome: AnyOutcome
    rule: str
    adopt: Callable[[], None] = nothing
