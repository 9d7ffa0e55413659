"""What happened in a scenario, operation by operation, compact enough to keep and draw.

The history of a survey has thousands of touches. Here adjacent pages at which a guest met the same
are one entry, so that a run of all scenarios takes a megabyte or two.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec

from vmm.model.gfntree import Trees
from vmm.model.regions import Memslot
from vmm.model.rules import all_rules
from vmm.scenario import outcomewords, words
from vmm.scenario.content import identify
from vmm.scenario.history import (
    AnyOutcome,
    Done,
    Event,
    Header,
    Ran,
    Stopped,
    Swept,
    Touched,
)
from vmm.scenario.instructions import accessed
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    Execute,
    Inspect,
    Instruction,
    Race,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.scenario.plan import mappings_of
from vmm.scenario.threadwords import threads

MOST_STEPS = 120
"""A longer scenario keeps its first and its last steps."""

MOST_SLOTS = 64
"""How many slots of a step are kept, from the front (highest gfn)."""

_MOST_NOTES = 12

_MOST_PAGES = 512
"""Of what one instruction goes over so many pages are kept."""

_Where = tuple[int, str, int]
"""An address space, an access and a gfn."""


class SlotShown(msgspec.Struct, frozen=True, array_like=True):
    """A memslot: as_id, slot id, first gfn and number of pages; hva and flags as text.

    >>> from vmm import SlotShown
    >>> SlotShown(as_id=0, slot_id=3, base_gfn=0x10, npages=2, hva="a+0x0", flags="0").npages
    2
    """

    as_id: int
    slot_id: int
    base_gfn: int
    npages: int
    hva: str
    flags: str


class Met(msgspec.Struct, frozen=True, array_like=True):
    """What a guest met at ``pages`` pages from ``gfn`` on.

    ``access`` is "r", "w", "x" (executes), or "i": an instruction that reads, writes, or both.
    ``what`` is "mmio", "memory" (no exit), "stop", or a
    mapping's name: the guest read its page ``first`` at ``gfn``, and the following pages in order.

    >>> from vmm import Met
    >>> Met(as_id=0, gfn=0x10, pages=2, access="r", what="a", first=5).what
    'a'
    """

    as_id: int
    gfn: int
    pages: int
    access: str
    what: str
    first: int = 0


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """An operation of a scenario and its outcome.

    ``origin`` is its index: -1 before the first operation, the number of operations after the last.
    ``rule`` decided the outcome. ``slots`` are those after it, by as_id and then from the highest
    gfn down; None if unchanged since the previous step. ``knots`` are the slots' nodes in the
    kernel's tree by gfn (since Linux 5.17): for each slot the index of its parent (-1: the root)
    and 1 for a red node, 0 for a black one; empty once there were too many slots.
    ``touches`` counts the touches in ``met``. ``differs`` is the gfn at which no rule allows what
    the guest met, -1 if the differing operation was not an access to one page; ``differs_in`` is
    the as_id of that access.

        >>> from vmm import Scenario, operations, run_scenario
        >>> deletion = operations.SetUserMemoryRegion(slot=7)
        >>> steps = run_scenario(Scenario("absent", (deletion,))).steps
        >>> [(step.outcome, step.rule) for step in steps if step.origin == 0]
        [('EINVAL', 'delete-absent')]
    """

    origin: int
    call: str
    outcome: str = ""
    rule: str = ""
    slots: tuple[SlotShown, ...] | None = None
    knots: tuple[tuple[int, int], ...] = ()
    met: tuple[Met, ...] = ()
    touches: int = 0
    notes: tuple[str, ...] = ()
    differs: int | None = None
    differs_in: int = 0


class RuleText(msgspec.Struct, frozen=True):
    """A rule as reports show it."""

    promise: str
    basis: str
    cite: str


def rule_texts(names: Iterable[str]) -> dict[str, RuleText]:
    """Return the rules of these names, in the model's order."""
    wanted = set(names)
    return {
        rule.name: RuleText(rule.promise, rule.basis, rule.cite)
        for rule in all_rules()
        if rule.name in wanted
    }


class StepRecorder:
    """Collects the steps of one history while it is judged.

    A step is put into words when it ends, and only if it is kept.
    """

    def __init__(self, header: Header) -> None:
        self._operations = header.scenario.operations
        self._mappings = mappings_of(header.scenario)
        self._steps: list[Step] = []
        self._left_out = 0
        self._gap: tuple[int, int] | None = None
        self._shown: tuple[SlotShown, ...] | None = None
        self._trees = Trees(MOST_SLOTS)
        self._whats: dict[int, tuple[str, int]] = {}
        self._begin(None)

    def _begin(self, origin: int | None) -> None:
        self.origin = origin
        """The operation whose step is under way; None before the first event."""
        self._events: list[Event] = []
        self._rules: list[str | None] = []

    def before(self, event: Event, slots: Iterable[Memslot]) -> None:
        """Begin the step of an event; ``slots`` exist before it."""
        self.end(slots)
        self._begin(event.origin)

    def add(self, event: Event, rule: str | None) -> None:
        """Add an event, and the rule that decided it: None if no rule allows its outcome."""
        if isinstance(event.operation, SetUserMemoryRegion) and isinstance(event.outcome, Done):
            self._trees.follow(event.operation)
        self._events.append(event)
        self._rules.append(rule)

    def end(self, slots: Iterable[Memslot]) -> None:
        """End the step under way; ``slots`` exist after it."""
        if self.origin is None:
            return
        if self._is_left_out(self.origin):
            if self._gap is None:
                self._gap = len(self._steps), self.origin
            self._left_out += 1
            self._shown = None
            return
        there = list(islice(slots, MOST_SLOTS + 1))
        shown = tuple(map(_shown, there[:MOST_SLOTS]))
        step = self._step(self.origin)
        if shown != self._shown:
            knots = self._trees.knots([(slot.number, slot.base_gfn) for slot in there])
            step = msgspec.structs.replace(step, slots=shown, knots=knots)
        self._steps.append(step)
        self._shown = shown

    def steps(self) -> tuple[Step, ...]:
        """Return the steps so far; a long scenario lacks those in the middle."""
        if self._gap is None:
            return tuple(self._steps)
        index, origin = self._gap
        gap = Step(origin, f"... {self._left_out} steps are left out here")
        return (*self._steps[:index], gap, *self._steps[index:])

    def _is_left_out(self, origin: int) -> bool:
        """Whether a step is in the middle of a long scenario, and nothing differs there.

        Putting thousands of slots into words costs more than judging them, so this is decided in
        advance, by the number of operations.
        """
        half = MOST_STEPS // 2
        is_in_the_middle = half <= origin < len(self._operations) - half
        return is_in_the_middle and None not in self._rules

    def _step(self, origin: int) -> Step:
        """Return the step made of the events so far, without its slots."""
        own = self._operations[origin] if 0 <= origin < len(self._operations) else None
        outcome = decided_by = ""
        differs: int | None = None
        differs_in = 0
        touches: list[Event] = []
        notes: list[Event] = []
        for event, rule in zip(self._events, self._rules, strict=True):
            op = event.operation
            if rule is None:
                differs, differs_in = _gfn_of(op)
            if not outcome and op == own:
                outcome, decided_by = (
                    outcomewords.outcome(event.outcome, self._mappings),
                    rule or "",
                )
            elif rule is None or not isinstance(op, Touch | Execute | Inspect):
                notes.append(event)
            if isinstance(op, Touch | Execute | Instruction | Sweep):
                touches.append(event)
        return Step(
            origin,
            words.operation(own) if own is not None else _outside(origin),
            outcome,
            decided_by,
            met=tuple(_runs(dict(self._met(touches)))),
            touches=len(touches),
            notes=(
                *(threads(own) if isinstance(own, Race) else ()),
                *map(self._note, notes[:_MOST_NOTES]),
            ),
            differs=differs,
            differs_in=differs_in,
        )

    def _met(self, events: Iterable[Event]) -> Iterator[tuple[_Where, tuple[str, int]]]:
        """Yield at which page each access met what; there is nothing to say of some."""
        for event in events:
            op, outcome = event.operation, event.outcome
            match op:
                case Touch() | Execute():
                    gfn, offset = divmod(op.gpa, PAGE_SIZE_BYTES)
                    access = op.access[0] if isinstance(op, Touch) else "x"
                    is_whole = isinstance(op, Execute) or offset + op.width <= PAGE_SIZE_BYTES
                    if is_whole or isinstance(outcome, Stopped):
                        yield (op.as_id, access, gfn), self._what(access, outcome)
                case Instruction():
                    yield from _met_by_many(op.as_id, "i", accessed(op), outcome)
                case Sweep():
                    every = ((op.gpa, op.count * op.width),)
                    yield from _met_by_many(op.as_id, op.access[0], every, outcome)
                case _:
                    pass

    def _what(self, access: str, outcome: AnyOutcome) -> tuple[str, int]:
        if not isinstance(outcome, Touched):
            return "stop", 0
        if outcome.mmio:
            return "mmio", 0
        if access == "w":
            return "memory", 0
        what = self._whats.get(outcome.value)
        if what is None:
            what = self._whats[outcome.value] = self._named(outcome.value)
        return what

    def _named(self, value: int) -> tuple[str, int]:
        """Return the mapping and page that a value identifies."""
        index, page = identify(value)
        if 0 <= index < len(self._mappings):
            mapping = self._mappings[index]
            if page < mapping.pages:
                return mapping.name, page
        return "memory", 0

    def _note(self, event: Event) -> str:
        text = outcomewords.outcome(event.outcome, self._mappings)
        return f"{words.operation(event.operation)}: {text}"


def _met_by_many(
    as_id: int, access: str, ranges: Iterable[tuple[int, int]], outcome: AnyOutcome
) -> Iterator[tuple[_Where, tuple[str, int]]]:
    """Yield what accesses to (gpa, length) met: where there was no exit it was memory."""
    exits = outcome.mmio if isinstance(outcome, Ran | Swept) else ()
    met: set[int] = set()
    for each in exits:
        for gfn in _gfns(each.gpa, len(each.data)):
            met.add(gfn)
            yield (as_id, "w" if each.write else "r", gfn), ("mmio", 0)
    what = "memory" if isinstance(outcome, Ran | Swept) else "stop"
    for gpa, length in ranges:
        for gfn in _gfns(gpa, length):
            if gfn not in met:
                yield (as_id, access, gfn), (what, 0)


def _gfns(gpa: int, length: int) -> range:
    """Return the pages of a range: of a long one the first."""
    first = gpa // PAGE_SIZE_BYTES
    return range(first, min((gpa + length - 1) // PAGE_SIZE_BYTES + 1, first + _MOST_PAGES))


def _outside(origin: int) -> str:
    return "the guest's own memslot" if origin < 0 else "the end: the VM is closed"


def _gfn_of(op: AnyOperation) -> tuple[int, int]:
    """Return the gfn of an access and its address space, -1 and 0 if it is none."""
    if isinstance(op, Touch | Execute | Sweep | Instruction):
        return op.gpa // PAGE_SIZE_BYTES, op.as_id
    return -1, 0


def _shown(slot: Memslot) -> SlotShown:
    return SlotShown(
        slot.as_id,
        slot.slot_id,
        slot.base_gfn,
        slot.npages,
        words.hva(slot.userspace_addr),
        words.flags(slot.flags),
    )


def _runs(met: dict[_Where, tuple[str, int]]) -> Iterator[Met]:
    """Yield what was met, by address space, access and gfn; adjacent pages become one entry."""
    found: Met | None = None
    for (as_id, access, gfn), (what, first) in sorted(met.items()):
        if found is not None and _goes_on(found, as_id, access, gfn, what, first):
            found = msgspec.structs.replace(found, pages=found.pages + 1)
            continue
        if found is not None:
            yield found
        found = Met(as_id, gfn, 1, access, what, first)
    if found is not None:
        yield found


def _goes_on(found: Met, as_id: int, access: str, gfn: int, what: str, first: int) -> bool:
    same = (found.as_id, found.access, found.what) == (as_id, access, what)
    in_a_row = found.first + found.pages if _is_mapping(what) else 0
    return same and found.gfn + found.pages == gfn and first == in_a_row


def _is_mapping(what: str) -> bool:
    return what not in ("mmio", "memory", "stop")
