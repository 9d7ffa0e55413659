"""What makes two differences the same: the operation, the rules and the kind of outcome."""

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from vmm.model.rule import Rule
from vmm.scenario.history import AnyOutcome, Ran, Refused, SetUpRefused, Swept, Touched
from vmm.scenario.operations import AnyOperation


@dataclass(frozen=True, slots=True)
class Identity:
    """The kind of a difference.

    ``operation`` is the kind of the operation, ``rules`` are the sorted names of the rules that
    allow other outcomes, and ``outcome`` is the kind of the outcome that was observed. What is not
    the outcome of an operation (a hang, a complaint of the kernel) has no rules.

        >>> from vmm import Identity
        >>> print(Identity("Touch", ("hole",), "memory"))
        Touch hole memory
    """

    operation: str
    rules: tuple[str, ...] = ()
    outcome: str = ""

    @classmethod
    def of(cls, operation: AnyOperation, rules: Iterable[Rule], outcome: AnyOutcome) -> Self:
        """Return the identity of an outcome that none of the rules allows. Raises nothing.

        >>> from vmm import Identity, Rule, history, operations
        >>> rule = Rule("hole", "a gpa without a slot is MMIO", "documented", "api.rst 5")
        >>> print(Identity.of(operations.Touch(0x1000), [rule], history.Touched(0)))
        Touch hole memory
        """
        names = tuple(sorted({rule.name for rule in rules}))
        return cls(type(operation).__name__, names, outcome_kind(outcome))

    @property
    def cause(self) -> Self:
        """The identity that differences of one cause share: without outcome if there are rules."""
        return replace(self, outcome="") if self.rules else self

    @property
    def in_words(self) -> str:
        """The operation by its name in scenarios, and what it breaks.

        >>> from vmm import Identity
        >>> Identity("SetUserMemoryRegion", ("immutable",)).in_words
        'set_user_memory_region breaks immutable'
        """
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.operation).lower()
        return f"{name} breaks {', '.join(self.rules)}" if self.rules else f"{name} {self.outcome}"

    def __str__(self) -> str:
        return " ".join(filter(None, (self.operation, "|".join(self.rules), self.outcome)))


def outcome_kind(outcome: AnyOutcome) -> str:
    """Return the kind of an outcome: the errno's name, MMIO or memory, or the type's name."""
    match outcome:
        case Refused(number):
            return errno.errorcode.get(number, str(number))
        case SetUpRefused(_, _, number, answer):
            return answer or errno.errorcode.get(number, str(number))
        case Touched(mmio=mmio) | Swept(mmio=mmio) | Ran(mmio=mmio):
            return "MMIO" if mmio else "memory"
        case _:
            return type(outcome).__name__
