"""Races as tables for C: what each call returns and changes, and the threads' programs.

A C program cannot ask the model. But no two host threads change the same thing, so the state after
the n-th call of a thread depends on n alone, and repeats after some rounds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Literal, NamedTuple

from vmm.model.races.calls import BARE, HostSide, MaybeTranslation, Translation, View, view_of
from vmm.model.races.clocks import RaceClock, runs_a_vcpu
from vmm.model.races.logs import Logging
from vmm.model.races.tracks import Track
from vmm.model.races.words import WORD_BYTES
from vmm.repro.answers import InexpressibleError, errno_of
from vmm.scenario.clocks import ClockWrite
from vmm.scenario.history import AnyOutcome, Call, CallOutcome, Done, Refused
from vmm.scenario.hostpages import Access, PageKey
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    ChangeHostMemory,
    HostAction,
    HostWrite,
    PunchGuestMemfd,
    Race,
    SetMemoryAttributes,
    Touch,
    pages_of,
)

_MOST_ROUNDS = 8
"""The state has to repeat within this many rounds of a thread."""

_AT_FIRST = (-1, 0)
"""Before any call of a race."""

_LEAST_ROUNDS = 2
"""The least number of rounds of a thread that goes on until others have ended."""


@dataclass(frozen=True, slots=True)
class Logged:
    """What a call does to the log of its slot; ``event`` is a constant of the C program."""

    event: str = "STAYS"
    slot: int = 0
    pages: int = 0


Between = Literal["NO_OTHER", "A_HOLE", "A_FAULT"]
"""What a gfn may be while a call is under way, besides what it was and will be."""


@dataclass(slots=True)
class Row:
    """The state after a call of a thread, and the errnos that the call may return."""

    answers: tuple[int, ...]
    places: tuple[MaybeTranslation, ...]
    between: tuple[Between, ...]
    reach: dict[PageKey, Access]
    shows: dict[PageKey, PageKey] = field(default_factory=dict)
    """What pages show that show something else at some time."""

    cleared: tuple[PageKey, ...] = ()
    punched: tuple[PageKey, ...] = ()
    """The pages of a guest_memfd that the call punched out."""

    losing: tuple[PageKey, ...] = ()
    """The pages to which writes may be lost while the call is under way."""

    is_fresh: bool = False
    """Whether those pages may be fresh memory meanwhile."""

    logged: Logged = field(default_factory=Logged)


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a thread; from ``again`` on they repeat. The first is the state at the start."""

    rows: tuple[Row, ...]
    again: int


@dataclass(frozen=True, slots=True)
class ClockOf:
    """A clock of a vCPU: the view it is in, and whether each window of the vCPU writes it."""

    vcpu: int
    view: int
    is_sure: bool


class PrivateMemory(NamedTuple):
    """A guest_memfd, with the words in it that are not 0 when a race begins."""

    name: str
    pages: int
    words: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RaceTables:
    """All that a C program needs to know of a race."""

    race: Race
    views: tuple[View, ...]
    pages: tuple[PageKey, ...]
    threads: tuple[Table, ...]
    logs: tuple[tuple[int, bool, tuple[tuple[int, bool], ...]], ...]
    """(slot, whether writes are tracked, (page, whether it is surely dirty) of each page)."""
    slot_pages: tuple[tuple[int, int], ...]
    """(slot, the most pages it has) of each slot that exists at some time."""
    written: frozenset[tuple[str, int]]
    """Words that threads may write."""
    manual: bool
    has_ring: bool
    reads_make_dirty: bool
    clocks: tuple[ClockOf, ...] = ()
    clock_writes: tuple[ClockWrite, ...] = ()
    """What KVM may write at any place where its clocks may be."""

    private: tuple[PrivateMemory, ...] = ()
    """What vCPUs reach that the host cannot see."""

    @property
    def converts(self) -> bool:
        """Whether any gfn becomes private or shared, or is private memory."""
        actions = (op for host in self.race.hosts for op in host.operations)
        return bool(self.private) or any(isinstance(op, SetMemoryAttributes) for op in actions)

    @property
    def shows_anew(self) -> bool:
        """Whether any page shows something else at some time."""
        return any(row.shows for table in self.threads for row in table.rows)

    def emptied(self) -> Iterator[PageKey]:
        """Yield the pages whose content the host discards."""
        for table in self.threads:
            for row in table.rows:
                yield from row.cleared

    def view_owners(self) -> list[int]:
        """Return the thread that changes each view, or -1. Raises InexpressibleError."""

        def state(row: Row, at: int) -> object:
            return row.places[at], row.between[at]

        return [self._owner(partial(state, at=at)) for at in range(len(self.views))]

    def page_owners(self) -> list[int]:
        """Return the thread that changes each page, or -1. Raises InexpressibleError."""

        def state(row: Row, page: PageKey) -> object:
            shows = row.shows.get(page)
            return row.reach.get(page), shows, page in row.cleared, page in row.losing

        return [self._owner(partial(state, page=page)) for page in self.pages]

    def _owner(self, state: Callable[[Row], object]) -> int:
        owners = [
            number
            for number, table in enumerate(self.threads)
            if len({state(row) for row in table.rows}) > 1
        ]
        if len(owners) > 1:
            raise InexpressibleError("two threads of a race change what one gpa reaches")
        return owners[0] if owners else -1


def tables_of(
    race: Race,
    host: HostSide,
    observed: Callable[[int, int], AnyOutcome | None],
    clocks: Sequence[RaceClock] = (),
) -> RaceTables:
    """Play the calls of a race, thread by thread, and return what a C program needs to know.

    ``observed`` returns the outcome of a thread's call if the race was run, None if not. Raises
    InexpressibleError.
    """
    views = tuple(host.places)
    logs = tuple((log.slot, log.tracked == -3, tuple(_taken_over(log))) for log in host.logs)
    moments = count(8)
    players = [_Player(race, host, number, moments, observed) for number in range(len(race.hosts))]
    tables = tuple(
        player.table(thread.rounds) for player, thread in zip(players, race.hosts, strict=True)
    )
    sizes: dict[int, int] = {}
    for player in players:
        for slot, size in player.sizes.items():
            sizes[slot] = max(size, sizes.get(slot, 0))
    pages = tuple(
        dict.fromkeys(page for table in tables for row in table.rows for page in row.reach)
    )
    for table in tables:
        _fill(table, pages, host)
    stores = _stores_of(tables)
    return RaceTables(
        race,
        views,
        pages,
        tables,
        logs,
        tuple(sizes.items()),
        frozenset(_written(race, views, tables, stores)),
        bool(host.tracking.manual),
        host.tracking.ring is not None,
        host.tracking.features.reads_make_dirty,
        tuple(_clocks(race, views, clocks)),
        tuple(_clock_writes(views, tables, clocks, stores)),
        tuple(_private(host, tables)),
    )


def _private(host: HostSide, tables: Iterable[Table]) -> Iterator[PrivateMemory]:
    """Yield the private memory that vCPUs reach. Raises InexpressibleError."""
    found: dict[str, set[int]] = {}
    for row in (row for table in tables for row in table.rows):
        for place in row.places:
            if place is not None and host.is_private(place):
                found.setdefault(place.mapping, set()).add(place.page)
        for name, page in row.punched:
            found.setdefault(name, set()).add(page)
    for name, pages in found.items():
        words: list[tuple[int, int]] = []
        for page in sorted(pages):
            held = host.holds(name, page)
            if held is None:
                raise InexpressibleError("what private memory holds when a race begins is unknown")
            for at in range(0, PAGE_SIZE_BYTES, WORD_BYTES):
                value = int.from_bytes(held[at : at + WORD_BYTES], "little")
                if value:
                    words.append((page * PAGE_SIZE_BYTES + at, value))
        yield PrivateMemory(name, max(pages) + 1, tuple(words))


_Stores = dict[PageKey, tuple[PageKey, ...]]
"""For each page that shows something else at some time, all that it shows."""


def _stores_of(tables: Iterable[Table]) -> _Stores:
    found: dict[PageKey, dict[PageKey, None]] = {}
    for table in tables:
        for row in table.rows:
            for page, store in row.shows.items():
                found.setdefault(page, {})[store] = None
    return {page: tuple(stores) for page, stores in found.items()}


def _clocks(race: Race, views: tuple[View, ...], clocks: Iterable[RaceClock]) -> Iterator[ClockOf]:
    for vcpu, clock, gpa in clocks:
        if vcpu < len(race.guests):
            is_sure = clock == "steal_time" and runs_a_vcpu(race, vcpu)
            yield ClockOf(vcpu, views.index((0, gpa // PAGE_SIZE_BYTES)), is_sure)


def _clock_writes(
    views: tuple[View, ...],
    tables: tuple[Table, ...],
    clocks: Iterable[RaceClock],
    stores: _Stores,
) -> Iterator[ClockWrite]:
    for _, clock, gpa in clocks:
        at = views.index((0, gpa // PAGE_SIZE_BYTES))
        for place in dict.fromkeys(row.places[at] for table in tables for row in table.rows):
            if isinstance(place, Translation) and not place.readonly:
                key = place.mapping, place.page
                for mapping, page in stores.get(key, (key,)):
                    yield ClockWrite(mapping, page * PAGE_SIZE_BYTES + gpa % PAGE_SIZE_BYTES, clock)


def _taken_over(log: Logging) -> Iterator[tuple[int, bool]]:
    for page, each in log.writes.items():
        yield page, any(write.certain for write in each)


def _fill(table: Table, pages: Iterable[PageKey], host: HostSide) -> None:
    """Complete each row: what each page shows, and how it may be accessed, before any change."""
    for page in pages:
        track = host.presence.get(page)
        reach: Access = track.first if track is not None else "everything"
        shown = next(iter(host.stores(*page, _AT_FIRST)))
        for row in table.rows:
            reach = row.reach.setdefault(page, reach)
            if page in host.shown_anew:
                shown = row.shows.setdefault(page, shown)


def _between(track: Track[MaybeTranslation]) -> Between:
    if not track.passing:
        return "NO_OTHER"
    return "A_FAULT" if BARE in track.passing else "A_HOLE"


class _Player:
    """Plays the calls of one thread."""

    def __init__(
        self,
        race: Race,
        host: HostSide,
        number: int,
        moments: Iterator[int],
        observed: Callable[[int, int], AnyOutcome | None],
    ) -> None:
        self._thread = race.hosts[number]
        self._host = host
        self._number = number
        self._moments = moments
        self._observed = observed
        self._made = 0
        self.sizes: dict[int, int] = {}

    def table(self, rounds: int) -> Table:
        """Return the table of all rounds; the model is then in the state after the last."""
        rows = [self._row((0,), ())]
        known: list[object] = [self._state()]
        length = len(self._thread.operations)
        for played in range(1, _MOST_ROUNDS + 1):
            rows += [self._call(op) for op in self._thread.operations]
            state = self._state()
            if (state in known and played >= _LEAST_ROUNDS) or played == rounds:
                break
            known.append(state)
        else:
            raise InexpressibleError("what a thread of a race changes does not repeat soon")
        if played == rounds:
            return Table(tuple(rows), len(rows) - length)
        first = max(at for at, before in enumerate(known) if before == state)
        period = played - first
        if rounds:
            for _ in range((rounds - played) % period):
                for op in self._thread.operations:
                    self._call(op)
        elif period > 1:
            raise InexpressibleError("it depends on time what a thread of a race leaves")
        return Table(tuple(rows), 1 + first * length)

    def _state(self) -> object:
        slots = [
            (slot.number, slot.base_gfn, slot.npages, slot.flags, slot.userspace_addr)
            for slot in self._host.slots
        ]
        reach = {page: track.last for page, track in self._host.presence.items()}
        places = tuple(track.last for track in self._host.places.values())
        return slots, places, reach, self._host.shown_now()

    def _call(self, op: HostAction) -> Row:
        host = self._host
        logs = [(log, log.off, len(log.anew)) for log in host.logs]
        changes = {view: track.changes for view, track in host.places.items()}
        outcomes = host.may_come_to(op)
        outcome = self._chosen(outcomes)
        emptied = host.emptied(op) if isinstance(op, ChangeHostMemory) else ()
        call = Call(next(self._moments), next(self._moments), outcome)
        self._made += 1
        flaw = host.call(op, call, f"host thread {self._number}")
        assert flaw is None, "an outcome of its own is allowed"
        between = [
            _between(host.places[view]) if host.places[view].changes > before else "NO_OTHER"
            for view, before in changes.items()
        ]
        answers = tuple(dict.fromkeys((errno_of(outcome), *map(errno_of, outcomes))))
        row = self._row(answers, between)
        row.cleared = tuple(emptied)
        if isinstance(op, PunchGuestMemfd) and outcome == Done():
            first, end = op.offset // PAGE_SIZE_BYTES, pages_of(op.offset + op.size)
            row.punched = tuple((op.name, page) for page in range(first, end))
            row.cleared = row.punched
            row.reach.update(dict.fromkeys(row.punched, "everything"))
        if isinstance(op, ChangeHostMemory) and op.how in ("move_away", "fetch_later"):
            row.is_fresh = op.how == "move_away"
            first = op.place.offset // PAGE_SIZE_BYTES
            row.losing = tuple((op.place.mapping, first + at) for at in range(op.pages))
        row.logged = self._logged(logs)
        return row

    def _chosen(self, outcomes: Sequence[CallOutcome]) -> CallOutcome:
        observed = self._observed(self._number, self._made)
        if isinstance(observed, Refused) and observed in outcomes:
            return observed
        if observed is not None and not isinstance(observed, Refused):
            return next((o for o in outcomes if not isinstance(o, Refused)), outcomes[0])
        return outcomes[0]

    def _row(self, answers: tuple[int, ...], between: Sequence[Between]) -> Row:
        host = self._host
        for slot in host.slots:
            self.sizes[slot.number] = max(slot.npages, self.sizes.get(slot.number, 0))
        places = tuple(track.last for track in host.places.values())
        reach = {page: track.last for page, track in host.presence.items()}
        nothing: Between = "NO_OTHER"
        between = tuple(between) or (nothing,) * len(places)
        return Row(answers, places, between, reach, host.shown_now())

    def _logged(self, before: Sequence[tuple[Logging, object, int]]) -> Logged:
        host = self._host
        if len(host.logs) > len(before):
            new = host.logs[-1]
            event = "BEGINS" if new.tracked < float("inf") else "BEGINS_UNTRACKED"
            if new.writes:
                return Logged("BEGINS_SET", new.slot, len(new.writes))
            return Logged(event, new.slot)
        for log, (_, off, anew) in zip(host.logs, before, strict=True):
            if log.off != off:
                return Logged("ENDS", log.slot)
            if len(log.anew) > anew:
                return Logged("BEGINS_ANEW", log.slot)
        return Logged()


def _written(
    race: Race, views: tuple[View, ...], tables: tuple[Table, ...], stores: _Stores
) -> Iterator[tuple[str, int]]:
    """Yield each word that may be written, by the mapping whose page holds it."""
    for name, page, at in _written_places(race, views, tables):
        for mapping, held in stores.get((name, page), ((name, page),)):
            yield mapping, held * PAGE_SIZE_BYTES + at


def _written_places(
    race: Race, views: tuple[View, ...], tables: tuple[Table, ...]
) -> Iterator[tuple[str, int, int]]:
    for host in race.hosts:
        for op in host.operations:
            if isinstance(op, HostWrite):
                yield op.place.mapping, *divmod(op.place.offset, PAGE_SIZE_BYTES)
    for guest in race.guests:
        for step in guest.program:
            if isinstance(step, Touch) and step.access == "write":
                at = views.index(view_of(step))
                for place in {row.places[at] for table in tables for row in table.rows}:
                    if isinstance(place, Translation) and not place.readonly:
                        yield place.mapping, place.page, step.gpa % PAGE_SIZE_BYTES
