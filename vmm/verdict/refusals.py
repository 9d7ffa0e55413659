"""Counts the region calls that the kernel rightly refused, by errno and rule."""

import errno
from collections.abc import Iterator

import msgspec

from vmm.model.rule import Rule
from vmm.scenario import words
from vmm.scenario.history import Event, Raced, Refused
from vmm.scenario.operations import Race, SetUserMemoryRegion

IN_A_RACE = "the rules of a race"
"""Stands for the rule: in a race the order of the calls decides, not one rule."""


class RefusedCalls(msgspec.Struct, frozen=True):
    """Region calls that the kernel rightly refused with one errno, by one rule.

    ``origin`` and ``operation`` are those of the first; ``origin`` as in `Difference`.

        >>> from vmm import Scenario, operations, run_scenario
        >>> deletion = operations.SetUserMemoryRegion(slot=7)
        >>> (refused,) = run_scenario(Scenario("absent", (deletion,) * 2)).verdict.refused
        >>> refused.errno, refused.rule, refused.count
        ('EINVAL', 'delete-absent', 2)
    """

    errno: str
    rule: str
    count: int
    origin: int
    operation: str


class Refusals:
    """Counts the region calls of one history that were refused."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], tuple[int, SetUserMemoryRegion]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def note(self, event: Event, rule: Rule | None) -> None:
        """Count the refused calls of an event; ``rule`` is the deciding one, None for a race."""
        name = IN_A_RACE if rule is None else rule.name
        for op, number in _refused(event):
            kind = errno.errorcode.get(number, str(number)), name
            self._first.setdefault(kind, (event.origin, op))
            self._counts[kind] = self._counts.get(kind, 0) + 1

    def counted(self) -> tuple[RefusedCalls, ...]:
        """Return the refused calls by kind, in the order in which the kinds first came up."""
        return tuple(
            RefusedCalls(*kind, self._counts[kind], origin, words.operation(op))
            for kind, (origin, op) in self._first.items()
        )


def _refused(event: Event) -> Iterator[tuple[SetUserMemoryRegion, int]]:
    """Yield the region calls of an event that were refused, each with its errno."""
    op, outcome = event.operation, event.outcome
    if isinstance(op, SetUserMemoryRegion) and isinstance(outcome, Refused):
        yield op, outcome.errno
    if isinstance(op, Race) and isinstance(outcome, Raced):
        for host, calls in zip(op.hosts, outcome.calls, strict=True):
            for number, call in enumerate(calls):
                made = host.operations[number % len(host.operations)]
                if isinstance(made, SetUserMemoryRegion) and isinstance(call.outcome, Refused):
                    yield made, call.outcome.errno
