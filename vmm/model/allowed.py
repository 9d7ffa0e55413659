"""An outcome that the rules allow."""

from collections.abc import Callable

import msgspec

from vmm.scenario.history import AnyOutcome


def nothing() -> None:
    """The effect of an outcome that changes nothing."""


class Allowed(msgspec.Struct, frozen=True):
    """An outcome, the name of the rule that allows it, and what it does to the model's state."""

    outcome: AnyOutcome
    rule: str
    adopt: Callable[[], None] = nothing
