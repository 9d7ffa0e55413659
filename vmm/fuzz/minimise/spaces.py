"""Scenarios near a given one, encoded as Hypothesis choices: fewer pieces, simpler values."""

from collections.abc import Sequence
from typing import Any, Protocol

from hypothesis import strategies as st

from vmm.fuzz.minimise.simpler import with_operations
from vmm.scenario.operations import PAGE_SIZE_BYTES, AnyOperation, Place, Scenario

_PLACES = ("guest_phys_addr", "gpa")
_OWN = frozenset(("slot", "memory_size", "userspace_addr", *_PLACES))
"""Fields with a pool of their own; a gpa is a page and an offset. All others share one pool."""

_SIMPLE_GFN = 0x100
_POOL_STEP = 1 << 12
_Choice = bool | int
_Rest = tuple[int, tuple[tuple[str, Any], ...]]


class Made:
    """A scenario that Hypothesis made, with a short repr: Hypothesis logs everything it makes."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario

    def __repr__(self) -> str:
        return f"<{len(self.scenario.operations)} operations>"


class Space(Protocol):
    """Scenarios near ``base``."""

    base: Scenario

    def choices(self) -> Sequence[_Choice]:
        """Return the choices that encode ``base``."""

    def rank(self, scenario: Scenario) -> Any:
        """Return a value that is smaller for a better scenario."""

    def scenarios(self) -> st.SearchStrategy[Made]:
        """Return the strategy that decodes choices to scenarios."""


class Pieces:
    """Scenarios without some pieces of ``base``: a choice says whether a piece stays."""

    def __init__(self, base: Scenario, size: int) -> None:
        self.base = base
        operations = base.operations
        self._pieces = [operations[at : at + size] for at in range(0, len(operations), size)]

    def choices(self) -> Sequence[_Choice]:
        return [True] * len(self._pieces)

    def rank(self, scenario: Scenario) -> int:
        return len(scenario.operations)

    def scenarios(self) -> st.SearchStrategy[Made]:
        stays = st.booleans()

        @st.composite
        def build(draw: st.DrawFn) -> Made:
            kept = [piece for piece in self._pieces if draw(stays)]
            return Made(with_operations(self.base, tuple(op for piece in kept for op in piece)))

        return build()


class Values:
    """Scenarios made of the values of ``base``, and of some simpler ones."""

    def __init__(self, base: Scenario) -> None:
        self.base = base
        self._types: list[type[AnyOperation]] = []
        self._rests: dict[type[AnyOperation], _Pool] = {}
        operations = base.operations
        for op in operations:
            if type(op) not in self._types:
                self._types.append(type(op))
        self._types.sort(key=lambda kind: len(kind.__struct_fields__))
        for number, kind in enumerate(self._types, 5):
            seen = {_rest(op) for op in operations if type(op) is kind}
            seen |= {_plain(rest, kind) for rest in seen}
            self._rests[kind] = _Pool(number, sorted(seen, key=_complexity))
        self._pools = {
            "slot": _Pool(1, _simple_slots(operations)),
            "page": _Pool(2, _simple_pages(operations)),
            "memory_size": _Pool(3, sorted(_values(operations, "memory_size") | {PAGE_SIZE_BYTES})),
            "userspace_addr": _Pool(4, _simple_hvas(operations)),
        }

    def choices(self) -> Sequence[_Choice]:
        return self._encode(self.base)

    def rank(self, scenario: Scenario) -> tuple[int, list[_Choice]]:
        choices = self._encode(scenario)
        return len(choices), choices

    def _encode(self, scenario: Scenario) -> list[_Choice]:
        choices: list[_Choice] = []
        for op in scenario.operations:
            kind = type(op)
            choices += (True, self._types.index(kind))
            choices += (pool.index(value) for pool, value in self._parts(op))
        return [*choices, False]

    def _parts(self, op: AnyOperation) -> list[tuple["_Pool", Any]]:
        parts: list[tuple[_Pool, Any]] = []
        for name in op.__struct_fields__:
            if name in _PLACES:
                parts.append((self._pools["page"], getattr(op, name) // PAGE_SIZE_BYTES))
            elif name in _OWN:
                parts.append((self._pools[name], getattr(op, name)))
        return [*parts, (self._rests[type(op)], _rest(op))]

    def scenarios(self) -> st.SearchStrategy[Made]:
        """Return the strategy that decodes what ``_encode`` wrote."""
        operations = [self._operation(kind) for kind in self._types]
        last = len(operations) - 1

        @st.composite
        def build(draw: st.DrawFn) -> Made:
            made: list[AnyOperation] = []
            while draw(st.booleans()):
                made.append(draw(operations[draw(st.integers(0, last))]))
            return Made(with_operations(self.base, tuple(made)))

        return build()

    def _operation(self, kind: type[AnyOperation]) -> st.SearchStrategy[AnyOperation]:
        names = [name for name in kind.__struct_fields__ if name in _OWN]
        pools = [self._pools["page" if name in _PLACES else name] for name in names]
        rests = self._rests[kind]

        @st.composite
        def build(draw: st.DrawFn) -> AnyOperation:
            fields = {name: draw(pool.strategy) for name, pool in zip(names, pools, strict=True)}
            offset, others = draw(rests.strategy)
            for name in _PLACES:
                if name in fields:
                    fields[name] = fields[name] * PAGE_SIZE_BYTES + offset
            return kind(**fields, **dict(others))

        return build()


class _Pool:
    """Values, the simplest first, and the choice of one of them.

    Different pools use different numbers as choices: Hypothesis lowers equal numbers together, so
    that all uses of one value become simpler at once.
    """

    def __init__(self, number: int, values: list[Any]) -> None:
        self._first = number * _POOL_STEP
        self._values = list(dict.fromkeys(values))
        self._index = {value: self._first + n for n, value in enumerate(self._values)}
        choices = st.integers(self._first, self._first + len(self._values) - 1)
        self.strategy = choices.map(lambda choice: self._values[choice - self._first])

    def index(self, value: Any) -> int:
        return self._index[value]


def _rest(op: AnyOperation) -> _Rest:
    """Return the offset of an operation's gpa in its page, and the fields without an own pool."""
    offset = 0
    others: list[tuple[str, Any]] = []
    for name in op.__struct_fields__:
        if name in _PLACES:
            offset = getattr(op, name) % PAGE_SIZE_BYTES
        elif name not in _OWN:
            others.append((name, getattr(op, name)))
    return offset, tuple(others)


def _plain(rest: _Rest, kind: type[AnyOperation]) -> _Rest:
    """Return a rest whose fields have their defaults, as far as they have any."""
    names = kind.__struct_fields__
    defaults = dict(zip(names[::-1], kind.__struct_defaults__[::-1], strict=False))
    return rest[0], tuple((name, defaults.get(name, value)) for name, value in rest[1])


def _complexity(rest: _Rest) -> tuple[Any, ...]:
    offset, others = rest
    return (
        sum(
            value not in (0, -1, "", "owner", "readable", "writable", "read") for _, value in others
        ),
        offset,
        str(others),
    )


def _values(operations: tuple[AnyOperation, ...], name: str) -> set[Any]:
    return {getattr(op, name) for op in operations if name in op.__struct_fields__}


def _simple_slots(operations: tuple[AnyOperation, ...]) -> list[int]:
    seen = sorted(_values(operations, "slot"))
    return [*range(1, 1 + min(len(seen), 4)), *seen]


def _simple_pages(operations: tuple[AnyOperation, ...]) -> list[int]:
    gpas = _values(operations, "gpa") | _values(operations, "guest_phys_addr")
    seen = sorted({gpa // PAGE_SIZE_BYTES for gpa in gpas})
    return [*range(_SIMPLE_GFN, _SIMPLE_GFN + min(len(seen), 8)), *seen]


def _simple_hvas(operations: tuple[AnyOperation, ...]) -> list[Any]:
    seen = _values(operations, "userspace_addr")
    places = [hva for hva in seen if isinstance(hva, Place)]
    numbers = sorted(hva for hva in seen if not isinstance(hva, Place))
    starts = [Place(name) for name in sorted({place.mapping for place in places})]
    return [*starts, *sorted(places, key=lambda p: (p.mapping, p.offset)), *numbers]
