"""Results grouped by cause: differences by identity, skips by reason."""

from collections.abc import Iterable
from dataclasses import dataclass

from vmm.verdict.identity import Identity
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked


@dataclass(frozen=True, slots=True)
class Differing:
    """Scenarios that differ by the same cause: the shortest, and the names of the others."""

    cause: Identity
    shortest: Checked
    others: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many scenarios there are in the group."""
        return 1 + len(self.others)


@dataclass(frozen=True, slots=True)
class Skipped:
    """The names of scenarios that were skipped for the same reason."""

    reason: str
    names: tuple[str, ...]


def differing(checked: Iterable[Checked]) -> tuple[Differing, ...]:
    """Return the scenarios that differ, by cause, in the order in which the causes came up.

    The shortest of a group has the fewest operations up to its difference. The names of the others
    keep the order of ``checked``.
    """
    groups: dict[Identity, list[Checked]] = {}
    for each in checked:
        if each.verdict.status is Status.DIFFERS and each.verdict.difference is not None:
            groups.setdefault(each.verdict.difference.identity.cause, []).append(each)
    return tuple(_group(cause, members) for cause, members in groups.items())


def skipped(checked: Iterable[Checked]) -> tuple[Skipped, ...]:
    """Return the scenarios that were skipped, by reason, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for each in checked:
        if each.verdict.status is Status.SKIPPED:
            groups.setdefault(each.verdict.reason, []).append(each.scenario.name)
    by_count = sorted(groups.items(), key=lambda item: -len(item[1]))
    return tuple(Skipped(reason, tuple(names)) for reason, names in by_count)


def _group(cause: Identity, members: list[Checked]) -> Differing:
    shortest = min(members, key=_length)
    others = tuple(each.scenario.name for each in members if each is not shortest)
    return Differing(cause, shortest, others)


def _length(checked: Checked) -> tuple[int, int]:
    """Return how many operations, and how many events, precede a difference."""
    difference = checked.verdict.difference
    assert difference is not None
    return difference.origin, difference.event
