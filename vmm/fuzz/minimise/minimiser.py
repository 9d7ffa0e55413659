"""Minimises a scenario to the fewest operations and the simplest values that still differ.

Hypothesis does the work. A scenario is encoded as a sequence of choices, which Hypothesis gets as
an example that it once found; it shortens the sequence and lowers its numbers as long as the
decoded scenario still differs. The first choices are whether a piece of the scenario stays, in
smaller and smaller pieces; then the type of an operation, and for each field an index into a pool
of values, the simplest first. What no choice encodes is reduced last: features that are not needed,
vCPUs, pages of mappings, threads of races (``simpler.py``).

Nothing here knows an operation by name, so a new one is minimised like all others.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
from hypothesis import Phase, Verbosity, find as hypothesis_find, settings
from hypothesis.database import InMemoryExampleDatabase, choices_to_bytes
from hypothesis.errors import HypothesisException

from vmm.fuzz.minimise.simpler import Way, pairs, ways
from vmm.fuzz.minimise.spaces import Made, Pieces, Space, Values
from vmm.scenario.operations import AnyOperation, Inspect, Scenario
from vmm.scenario.plan import guest_slots, steps
from vmm.scenario.validate import is_valid

MAX_FLAT_OPERATIONS = 1500
"""Hypothesis shortens sequences of some thousand choices; it refuses longer ones."""

_KEY = b"scenario"
_MAX_PIECES = 48
Differs = Callable[[Scenario], bool]
Improved = Callable[[Scenario], None]


class Minimiser:
    """Minimises one scenario. ``differs`` runs a scenario in a new VM.

    ``touch_limit`` is the first gpa that the guest does not reach. ``time_limit_s`` ends the tries;
    the result is then ``unfinished``.
    """

    def __init__(self, differs: Differs, touch_limit: int, time_limit_s: float) -> None:
        self._touch_limit = touch_limit
        self._differs = differs
        self._deadline = time.monotonic() + time_limit_s
        self._known: dict[bytes, bool] = {}
        self.tries = 0
        self.unfinished = False

    def minimise(self, scenario: Scenario, improved: Improved) -> Scenario:
        """Return the smallest scenario found; ``improved`` gets each one on the way.

        First whole operations are removed, those of the survey included, and such as stand or fall
        together; then values are simplified, and last everything around the operations.
        """
        best = self._simplified(self._without(scenario, improved), improved, pairs)
        flat = flattened(best, self._touch_limit)
        if flat is not best and self._try(flat):
            best = self._without(flat, improved)
        return self._simplified(self._by_hypothesis(Values(best), improved), improved, ways)

    def _without(self, best: Scenario, improved: Improved) -> Scenario:
        """Return a scenario without unneeded pieces; large pieces are tried first."""
        size = len(best.operations)
        while size > 1:
            size = min(size // 2, math.ceil(len(best.operations) / _MAX_PIECES)) or 1
            best = self._by_hypothesis(Pieces(best, size), improved)
        return best

    def _simplified(
        self, best: Scenario, improved: Improved, ways: Callable[[Scenario], Iterator[Way]]
    ) -> Scenario:
        """Return a scenario simplified in every way, until no way simplifies it further."""
        before = None
        while best is not before:
            before = best
            for way in ways(best):
                while (simpler := self._step(way, best)) is not None:
                    best = simpler
                    improved(best)
        return best

    def _step(self, way: Way, scenario: Scenario) -> Scenario | None:
        """Return a simpler scenario that differs, unless the time is up."""
        if self._is_late():
            return None
        return next((simpler for simpler in way(scenario) if self._try(simpler)), None)

    def _by_hypothesis(self, space: Space, improved: Improved) -> Scenario:
        best = space.base
        choices = space.choices()

        def condition(made: Made) -> bool:
            nonlocal best
            scenario = made.scenario
            if not self._try(scenario):
                return False
            if space.rank(scenario) < space.rank(best):
                best = scenario
                improved(best)
            return True

        database = InMemoryExampleDatabase()
        # One choice more: Hypothesis does not shrink an example that it takes for its own result.
        database.save(_KEY, choices_to_bytes([*choices, False]))
        quietly = settings(
            database=database,
            deadline=None,
            derandomize=False,
            max_examples=1,
            phases=(Phase.reuse, Phase.shrink),
            verbosity=Verbosity.quiet,
        )
        # If a difference comes and goes, what was found before it went is kept.
        with suppress(HypothesisException):
            hypothesis_find(space.scenarios(), condition, settings=quietly, database_key=_KEY)
        return best

    def _try(self, scenario: Scenario) -> bool:
        key = msgspec.json.encode(scenario)
        if key not in self._known:
            if self._is_late():
                return False
            self._known[key] = is_valid(scenario) and self._run(scenario)
        return self._known[key]

    def _is_late(self) -> bool:
        self.unfinished = self.unfinished or time.monotonic() > self._deadline
        return self.unfinished

    def _run(self, scenario: Scenario) -> bool:
        self.tries += 1
        return self._differs(scenario)


def flattened(scenario: Scenario, touch_limit: int) -> Scenario:
    """Return the same steps without a survey: each of its touches becomes an operation.

    A scenario whose survey is too long for that is returned as it is.
    """
    if scenario.survey == "none":
        return scenario
    implied = guest_slots(scenario)
    operations: list[AnyOperation] = []
    for step in steps(scenario, touch_limit):
        is_within = step.origin < len(scenario.operations) or isinstance(step.operation, Inspect)
        if is_within and step.operation not in implied:
            operations.append(step.operation)
        if len(operations) > MAX_FLAT_OPERATIONS:
            return scenario
    return msgspec.structs.replace(scenario, operations=tuple(operations), survey="none")
