"""What a program checks: the outcomes that the model allows at each step, and those observed.

What a race leaves in memory and logs differs each time, so it is unknown afterwards. The steps
after a race are played on with the outcomes that were observed, if it was run.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vmm.model.allowed import HARNESS, Allowed
from vmm.model.model import Model
from vmm.repro.races import RaceTables, tables_of
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, Header, History, Raced, RingPages
from vmm.scenario.operations import AnyOperation, HarvestDirtyRing, Race, Scenario
from vmm.scenario.plan import steps


@dataclass(frozen=True, slots=True)
class Expectation:
    """A step and its allowed outcomes; ``chosen`` is the one that later steps assume.

    ``observed`` is None if the step was not run. A race has ``tables`` instead.
    """

    operation: AnyOperation
    allowed: tuple[Allowed, ...]
    chosen: AnyOutcome | None
    observed: AnyOutcome | None
    tables: RaceTables | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether the model does not know the outcome, nor what follows."""
        return not self.allowed and self.tables is None


class _Player:
    """Plays steps through the model, and goes on after races."""

    def __init__(self, header: Header) -> None:
        self._model = Model.of(header)
        self._raced = False
        self._logged: set[tuple[int, int]] = set()

    def step(self, operation: AnyOperation, observed: AnyOutcome | None) -> Expectation:
        if isinstance(operation, Race):
            return self._race(operation, observed)
        allowed = self._model.allowed(operation)
        if self._raced and self._model.has_ring and isinstance(operation, HarvestDirtyRing):
            return self._harvest(operation, observed)
        fitting = (a for a in allowed if observed is not None and a.outcome.admits(observed))
        chosen = next(fitting, None)
        if chosen is None and allowed and (observed is None or self._raced):
            chosen = allowed[0]
        if chosen is not None:
            chosen.adopt()
        return Expectation(operation, allowed, chosen.outcome if chosen else None, observed)

    def _race(self, race: Race, observed: AnyOutcome | None) -> Expectation:
        begun = self._model.begin_race(race)
        if begun is None:
            return Expectation(race, (), None, observed)
        host, clocks = begun
        calls = observed.calls if isinstance(observed, Raced) else ()

        def met(thread: int, number: int) -> AnyOutcome | None:
            if thread < len(calls) and number < len(calls[thread]):
                return calls[thread][number].outcome
            return None

        tables = tables_of(race, host, met, clocks)
        self._model.end_race(tables.written, tables.emptied(), tables.clock_writes)
        self._raced = True
        self._logged.update(
            (slot, page) for slot, pages in tables.slot_pages for page in range(pages)
        )
        return Expectation(race, (), None, None, tables)

    def _harvest(self, op: HarvestDirtyRing, observed: AnyOutcome | None) -> Expectation:
        """After a race any page that was ever logged may be in a ring."""
        outcome = RingPages(perhaps=tuple(sorted(self._logged)), may_be_full=True)
        return Expectation(op, (Allowed(outcome, HARNESS),), outcome, observed)


def of_history(history: History) -> Iterator[Expectation]:
    """Yield the steps of a history, up to the first that differs or is unknown."""
    player = _Player(history.header)
    for event in history.events:
        step = player.step(event.operation, event.outcome)
        yield step
        if step.tables is None and step.chosen is None:
            return


def of_scenario(scenario: Scenario, features: Features) -> Iterator[Expectation]:
    """Yield the steps of a scenario on an ideal kernel, up to the first that is unknown."""
    player = _Player(Header(scenario, features))
    for step in steps(scenario, features.touch_limit):
        expectation = player.step(step.operation, None)
        yield expectation
        if expectation.is_unknown:
            return
