"""One pass over the answers of a trace: judges them in an order that the trace allows.

Calls that were under way at the same time may have been carried out in another order than that in
which they ended. Only those near each other are reordered: any number of calls takes little memory.
"""

import errno
from collections import deque
from collections.abc import Iterable
from copy import deepcopy
from itertools import islice, permutations

from vmm.replay.order import MOST_AT_ONCE, Order, is_possible
from vmm.replay.steps import Step
from vmm.scenario.history import AnyOutcome, DirtyPages, Done, Event, PreFaulted, Refused
from vmm.scenario.operations import GetDirtyLog, PreFaultMemory
from vmm.verdict.judge import Judgement

WINDOW = 256
"""How far calls may be apart, in calls, to be reordered."""

KEPT = 10_000
"""How many of the last steps are kept, to be shown and weighed."""

_HWPOISON = 133
_NO_HOST_MEMORY = Refused(errno.EFAULT)
_MAPPED_OR_NOT = (Done(), _NO_HOST_MEMORY, Refused(_HWPOISON))


class Pass:
    """Judges steps in order, as far as they agree with the model."""

    def __init__(self, steps: Iterable[Step], judgement: Judgement, order: Order) -> None:
        self._source = iter(steps)
        self._order = order
        self._near: list[Step] = []
        """The steps since the older one of ``_saved``, and those that come next."""

        self._base = 0
        self._saved: deque[tuple[int, Judgement]] = deque(maxlen=2)
        """States near by, each with the number of steps before it."""

        self._last_end = 0
        self._last_open = -1 - WINDOW
        """The last step so far that began before an earlier one had ended."""

        self._next_look = 0
        self._judged: deque[Step] = deque(maxlen=KEPT)
        self.judgement = judgement
        self.count = 0
        """How many steps agree with the model."""

    def run(self, until: int | None = None) -> Step | None:
        """Go on to the first step that differs, or until so many agree; return that step."""
        while until is None or self.count < until:
            if self.count >= self._next_look:
                self._look_ahead()
            at = self.count - self._base
            if at == len(self._near):
                return None
            if admits(self.judgement, self.count, self._near[at]):
                self.count += 1
            elif not self._reordered(at):
                return self._near[at]
        return None

    def recent(self) -> list[Step]:
        """Return the last steps that agree, and the next one."""
        self._judged.extend(self._near[: self.count - self._base + 1])
        return list(self._judged)

    def _look_ahead(self) -> None:
        """Read steps ahead, and keep the state if the order of some near by is open."""
        needed = self.count - self._base + 2 * WINDOW - len(self._near)
        for step in islice(self._source, needed):
            if step.line.begin < self._last_end:
                self._last_open = self._base + len(self._near)
            self._last_end = max(self._last_end, step.line.end)
            self._near.append(step)
        if self._last_open >= self.count - WINDOW:
            self._saved.append((self.count, deepcopy(self.judgement)))
        else:
            self._saved.clear()
        gone = (self._saved[0][0] if self._saved else self.count) - self._base
        self._judged.extend(self._near[:gone])
        del self._near[:gone]
        self._base += gone
        self._next_look = self.count + WINDOW

    def _reordered(self, at: int) -> bool:
        """Reorder the calls that may have overtaken one; return whether another order fits."""
        group = self._order.rivals(self._near, at)
        if not 2 <= len(group) <= MOST_AT_ONCE:
            return False
        first, last = group[0], group[-1] + 1
        before = self._state_before(first)
        if before is None:
            return False
        # What lies between has nothing to do with them.
        others = [self._near[each] for each in range(first, last) if each not in group]
        for order in permutations([self._near[each] for each in group]):
            if is_possible(order):
                trial, steps = deepcopy(before), [*others, *order]
                if all(admits(trial, self._base + first + n, e) for n, e in enumerate(steps)):
                    self._near[first:last] = steps
                    self.judgement, self.count = trial, self._base + last
                    return True
        return False

    def _state_before(self, at: int) -> Judgement | None:
        """Return the state before a step near by, and forget those after it."""
        while self._saved and self._saved[-1][0] > self._base + at:
            self._saved.pop()
        if not self._saved:
            return None
        begin, saved = self._saved[-1]
        state = deepcopy(saved)
        for number in range(begin, self._base + at):
            admits(state, number, self._near[number - self._base])
        return state


def admits(judgement: Judgement, index: int, step: Step) -> bool:
    """Judge the next step; return whether it agrees with the model."""
    if isinstance(step.operation, PreFaultMemory) and not judgement.allowed(step.operation):
        return True  # It depends on memory that no trace shows.
    return judgement.admits(event_of(index, step, judgement))


def event_of(index: int, step: Step, judgement: Judgement | None = None) -> Event:
    """Return a step as an event, with what the trace does not show as the model has it."""
    assert step.outcome is not None
    outcome: AnyOutcome = step.outcome
    if judgement is None:
        return Event(index, step.operation, outcome)
    if isinstance(step.operation, GetDirtyLog) and outcome == Done():
        # The bitmap is not in the trace: any that the model allows.
        allowed = [each.outcome for each in judgement.allowed(step.operation)]
        outcome = next((each for each in allowed if isinstance(each, DirtyPages)), outcome)
    elif isinstance(step.operation, PreFaultMemory) and outcome in _MAPPED_OR_NOT:
        # How far it came is not in the trace, nor whether there is memory behind a slot.
        allowed = [each.outcome for each in judgement.allowed(step.operation)]
        is_slot = (
            each for each in allowed if each == _NO_HOST_MEMORY or isinstance(each, PreFaulted)
        )
        outcome = next(is_slot, outcome)
    return Event(index, step.operation, outcome)
