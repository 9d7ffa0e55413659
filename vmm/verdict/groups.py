"""Many results of one cause, drawn together: differences by identity, skips by reason."""

from collections.abc import Iterable
from dataclasses import dataclass

from vmm.verdict.identity import Identity
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked


@dataclass(frozen=True, slots=True)
class Differing:
    """Scenarios that differ by the same cause: the shortest one, and the others' names."""

    cause: Identity
    shortest: Checked
    others: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many scenarios these are."""
        return 1 + len(self.others)


@dataclass(frozen=True, slots=True)
class Skipped:
    """The names of scenarios that were skipped for the same reason."""

    reason: str
    names: tuple[str, ...]


def differing(checked: Iterable[Checked]) -> tuple[Differing, ...]:
    """Return the scenarios that differ, by cause, in the order in which the causes came up.

    The shortest of a group is the one with the fewest operations up to its difference. The others
    are named in the order in which they were given.
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
    """Return how many operations a difference takes, and how many events."""
    difference = checked.verdict.difference
    assert difference is not None
    return difference.origin, difference.event
