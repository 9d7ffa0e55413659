"""Results grouped by cause: differences by identity, known issues by name, skips by reason."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from vmm.verdict.judge import Status
from vmm.verdict.result import Checked


@dataclass(frozen=True, slots=True)
class Alike:
    """Scenarios whose results have one cause: the shortest, and the names of the others."""

    shortest: Checked
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """The names of scenarios that were skipped for the same reason."""

    reason: str
    names: tuple[str, ...]


def differing(checked: Iterable[Checked]) -> tuple[Alike, ...]:
    """Return the scenarios that differ, grouped by cause, in the order in which causes occur.

    The shortest of a group has the fewest operations up to its difference. The names of the others
    keep the order of ``checked``.
    """
    return _alike(
        (each.verdict.difference.identity.cause, each)
        for each in checked
        if each.verdict.status is Status.DIFFERS and each.verdict.difference is not None
    )


def known(checked: Iterable[Checked]) -> tuple[Alike, ...]:
    """Return the scenarios that a known issue explains, grouped by issue, as `differing` does."""
    return _alike(
        (each.issue and each.issue.name, each)
        for each in checked
        if each.verdict.status is Status.KNOWN
    )


def skipped(checked: Iterable[Checked]) -> tuple[Skipped, ...]:
    """Return the scenarios that were skipped, by reason, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for each in checked:
        if each.verdict.status is Status.SKIPPED:
            groups.setdefault(each.verdict.reason, []).append(each.scenario.name)
    by_count = sorted(groups.items(), key=lambda item: -len(item[1]))
    return tuple(Skipped(reason, tuple(names)) for reason, names in by_count)


def _alike(keyed: Iterable[tuple[Hashable, Checked]]) -> tuple[Alike, ...]:
    groups: dict[Hashable, list[Checked]] = {}
    for key, each in keyed:
        groups.setdefault(key, []).append(each)
    return tuple(_alike_group(members) for members in groups.values())


def _alike_group(members: list[Checked]) -> Alike:
    shortest = min(members, key=_length)
    return Alike(shortest, tuple(each.scenario.name for each in members if each is not shortest))


def _length(checked: Checked) -> tuple[int, int]:
    """Return how many operations, and how many events, precede the end of a verdict."""
    verdict = checked.verdict
    if verdict.difference is None:
        return checked.ran, verdict.events
    return verdict.difference.origin, verdict.difference.event
