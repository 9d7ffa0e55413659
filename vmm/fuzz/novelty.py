"""Coverage of random scenarios: kinds of change, errnos, sequences of changes, slot counts."""

from collections import Counter
from collections.abc import Iterable
from typing import get_args

from vmm.scenario.history import Event, Refused
from vmm.scenario.operations import AnyOperation, NewVm, SetUserMemoryRegion

_PATH_LENGTH = 4
_ITEMS = {kind: f"operation:{kind.__name__}" for kind in get_args(AnyOperation)}


class Novelty:
    """Counts what the events of scenarios covered. An item is a string ``group:what``.

    Groups are ``operation`` (its type), ``change``, ``refusal`` (rule and errno), ``pair`` (two
    successive calls), ``path`` (the latest changes of one slot) and ``slots`` (the most slots at
    once, rounded down to a power of two).
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self.items: Counter[str] = Counter()
        self._known = set(known)
        self._fresh = False
        self._begin()

    def _begin(self) -> None:
        self._last = "begin"
        self._paths: dict[int, tuple[str, ...]] = {}
        self._live: set[int] = set()

    def begin(self) -> None:
        """Begin with another scenario."""
        self._begin()
        self._fresh = False

    @property
    def fresh(self) -> bool:
        """Whether this scenario covered something that no earlier one did."""
        return self._fresh

    def see(self, event: Event, rule: str) -> None:
        """Count an event that was judged, with the rule that decided it."""
        operation = event.operation
        self._count(_ITEMS[type(operation)])
        if isinstance(operation, SetUserMemoryRegion):
            self._call(operation.slot, rule, event)
        elif isinstance(event.outcome, Refused):
            self._count(f"refusal:{rule} {event.outcome.errno}")
        if isinstance(operation, NewVm):
            self._begin()

    def _call(self, slot: int, rule: str, event: Event) -> None:
        outcome = event.outcome
        if isinstance(outcome, Refused):
            self._count(f"refusal:{rule} {outcome.errno}")
        else:
            self._count(f"change:{rule}")
            path = (*self._paths.get(slot, ()), rule)[-_PATH_LENGTH:]
            self._paths[slot] = path
            self._count("path:" + ">".join(path))
            self._track(slot, rule)
        self._count(f"pair:{self._last}>{rule}")
        self._last = rule

    def _track(self, slot: int, rule: str) -> None:
        if rule == "create":
            self._live.add(slot)
            self._count(f"slots:{1 << len(self._live).bit_length() - 1}")
        elif rule == "delete":
            self._live.discard(slot)

    def _count(self, item: str) -> None:
        self.items[item] += 1
        if item not in self._known:
            self._known.add(item)
            self._fresh = True

    def take(self) -> dict[str, int]:
        """Return the counts since the last call."""
        taken = dict(self.items)
        self.items.clear()
        return taken


def group(items: Iterable[str], name: str) -> list[str]:
    """Return the items of one group, sorted."""
    return sorted(item.partition(":")[2] for item in items if item.startswith(f"{name}:"))
