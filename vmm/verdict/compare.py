"""Compare two kernels on the same scenarios, without asking which is right."""

from collections.abc import Iterator
from dataclasses import dataclass

from vmm.scenario import outcomewords, words
from vmm.scenario.endings import INTERRUPTED
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, Event, History, Raced, RingsReset, Stopped
from vmm.scenario.shown import shown


@dataclass(frozen=True, slots=True)
class Parting:
    """A step at which two kernels gave different answers. ``event`` counts from 1.

    If ``differs`` is false, the two cannot be compared from this step on.
    """

    event: int
    operation: str
    first: str
    second: str
    differs: bool = True


def features_that_differ(first: Features, second: Features) -> list[str]:
    """Return a line for each feature whose value differs."""
    return [
        f"{name}: {getattr(first, name)} and {getattr(second, name)}"
        for name in Features.__struct_fields__
        if getattr(first, name) != getattr(second, name)
    ]


def partings(first: History, second: History) -> Iterator[Parting]:
    """Yield the steps at which two histories differ, up to where their steps diverge."""
    for number, (a, b) in enumerate(zip(first.events, second.events, strict=False), 1):
        if a.operation != b.operation:
            yield Parting(
                number,
                "the steps themselves differ from here on",
                words.operation(a.operation),
                words.operation(b.operation),
                differs=False,
            )
            return
        if not _same(a.outcome, b.outcome):
            yield _parting(number, a, b, first)
    shorter = min(len(first.events), len(second.events))
    if len(first.events) != len(second.events):
        yield Parting(
            shorter + 1,
            "one of them ends here",
            _end(first, shorter),
            _end(second, shorter),
            differs=_is_whole(first) and _is_whole(second),
        )
    elif _reason(first) != _reason(second) or not _is_whole(first):
        whole = _is_whole(first) and _is_whole(second)
        yield Parting(shorter + 1, "the end", _reason(first), _reason(second), differs=whole)


def _parting(number: int, a: Event, b: Event, history: History) -> Parting:
    mappings = history.header.scenario.mappings
    return Parting(
        number,
        words.operation(a.operation),
        outcomewords.outcome(a.outcome, mappings),
        outcomewords.outcome(b.outcome, mappings),
    )


def _same(a: AnyOutcome, b: AnyOutcome) -> bool:
    """Whether two outcomes are the same, apart from what varies from run to run."""
    if isinstance(a, Stopped) and isinstance(b, Stopped):
        return a.reason == b.reason
    if isinstance(a, Raced) and isinstance(b, Raced):
        return True
    if isinstance(a, RingsReset) and isinstance(b, RingsReset):
        return (a.entries == a.harvested) == (b.entries == b.harvested)
    return a == b


def _end(history: History, shorter: int) -> str:
    return "goes on" if len(history.events) > shorter else _reason(history)


def _reason(history: History) -> str:
    reason = history.end.reason if history.end else "cut off"
    # What follows the semicolon is the kernel stack.
    return shown(reason.partition(";")[0]) or "ended"


def _is_whole(history: History) -> bool:
    """Whether a history goes as far as the kernel let it."""
    return history.end is not None and history.end.reason != INTERRUPTED
