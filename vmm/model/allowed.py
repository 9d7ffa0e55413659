"""An outcome that the rules allow."""

from collections.abc import Callable

import msgspec

from vmm.model.rule import Rule, source
from vmm.scenario.history import AnyOutcome

HARNESS = source("harness", "what the host does to its own memory works", "not a promise of KVM")


def nothing() -> None:
    """The effect of an outcome that changes nothing."""


class Allowed(msgspec.Struct, frozen=True, gc=False):
    """An outcome, the rule that allows it, and what it does to the model's state.

    ``is_apart`` marks an alternative that leaves other bytes in memory than the first outcome.
    """

    outcome: AnyOutcome
    rule: Rule
    adopt: Callable[[], None] = nothing
    is_apart: bool = False

    def followed_by(self, effect: Callable[[], None]) -> "Allowed":
        """Return the same outcome, after which something more happens to the model's state."""

        def adopt() -> None:
            self.adopt()
            effect()

        return msgspec.structs.replace(self, adopt=adopt)
