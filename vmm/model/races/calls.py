"""The host's side of a race, applied to the model: which state held where, and when."""

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import NamedTuple, assert_never

from vmm.model.allowed import HARNESS
from vmm.model.backing import HOST_FOLLOWS, expected_of
from vmm.model.contents import PageKey
from vmm.model.races.flaw import Flaw, allowing
from vmm.model.races.logs import BEFORE, Logging
from vmm.model.races.state import RaceState
from vmm.model.races.tracks import Track
from vmm.model.races.words import MemoryWords
from vmm.model.regions import Memslot
from vmm.model.rule import Rule
from vmm.scenario.history import (
    Call,
    CallOutcome,
    DirtyPages,
    Done,
    Inspected,
    Raced,
    Refused,
    RingPages,
    RingsReset,
)
from vmm.scenario.hostpages import CHANGES, Access
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    READONLY,
    ChangeHostMemory,
    ClearDirtyLog,
    CloseGuestMemfd,
    Execute,
    GetDirtyLog,
    HarvestDirtyRing,
    HostAction,
    HostWrite,
    PreFaultMemory,
    PunchGuestMemfd,
    Race,
    ResetDirtyRings,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    Touch,
    pages_of,
)
from vmm.scenario.slots import as_id_of, id_of

View = tuple[int, int]
"""(as_id, gfn) of an access; as_id is 1 in system management mode."""


def view_of(op: Touch | Execute | PreFaultMemory) -> View:
    """Return the view of a guest's access; pre-faulting is done outside of SMM."""
    as_id = 0 if isinstance(op, PreFaultMemory) else op.as_id
    return as_id, op.gpa // PAGE_SIZE_BYTES


class Translation(NamedTuple):
    """What a gfn reaches: a page of a slot, and the page of the mapping there.

    ``slot`` is its 32-bit number.
    """

    slot: int
    slot_page: int
    mapping: str
    page: int
    readonly: bool


FAULT = Translation(-1, 0, "", 0, readonly=True)
"""A private gfn whose slot has no open guest_memfd."""

BARE = Translation(-2, 0, "", 0, readonly=True)
"""A private gfn without a slot: a fault as well, or MMIO, if a vCPU has cached it as that."""

NO_MEMORY = (FAULT, BARE)

MaybeTranslation = Translation | None
"""None is a hole."""

Interval = tuple[int, int]


class HostSide:
    """Applies the calls of the host threads in the order of their invocations.

    No two threads change the same thing, so this order determines the state that each call met.
    """

    def __init__(self, race: Race, state: RaceState, gfns: Iterable[int] = ()) -> None:
        """``gfns`` of as_id 0 are followed besides those that the guests' programs access."""
        self._race = race
        self._spaces = state.spaces
        self._backing = state.backing
        self.tracking = state.tracking
        self._allowed = state.allowed
        self.unclear = False
        """Whether a guest accesses a gfn for which the rules do not say which memory it reaches."""
        self._is_emulated = state.tracking.features.emulates_real_mode
        self._contents = state.contents
        self._shows: dict[PageKey, Track[PageKey]] = {}
        self._writes: list[tuple[str, HostWrite, Interval]] = []
        self.words = MemoryWords(state.contents, self.stores)
        views = (*_views(race), *((0, gfn) for gfn in gfns))
        self.places = {view: Track(self._reached(view)) for view in views}
        self.presence: dict[PageKey, Track[Access]] = {}
        self._losing: dict[PageKey, Track[str]] = {}
        self.logs: list[Logging] = []
        self.rules: set[Rule] = set()
        self._changes: list[Interval] = []
        self._conversions: list[tuple[range, Interval]] = []
        for slot in self.slots:
            if slot.dirty is not None:
                self._begin_log(slot, (-4, -3))
                if self.tracking.ring is None:
                    self._take_log_over(slot)
                elif any(page[0] == slot.number for page in self.tracking.ring.unprotected):
                    self.logs[-1].tracked = inf

    def is_private(self, place: Translation) -> bool:
        """Whether a gfn reaches memory of a guest_memfd that the host cannot see."""
        return place not in NO_MEMORY and place.mapping not in self._backing.names

    def holds(self, mapping: str, page: int) -> bytes | None:
        """Return what a page held when the race began; None if nobody knows all of it."""
        offset = page * PAGE_SIZE_BYTES
        if self._contents.is_vague(mapping, offset, PAGE_SIZE_BYTES):
            return None
        return self._contents.read(mapping, offset, PAGE_SIZE_BYTES)

    @property
    def slots(self) -> Iterator[Memslot]:
        """The slots of all address spaces."""
        return (slot for space in self._spaces for slot in space)

    def _slot(self, number: int) -> Memslot | None:
        as_id = as_id_of(number)
        return self._spaces[as_id].get(id_of(number)) if as_id < len(self._spaces) else None

    def play(self, outcome: Raced) -> Flaw | None:
        """Apply all calls; return the first one that the rules do not allow, if there is one."""
        for thread, number, call in _in_order(self._race, outcome.calls):
            operations = self._race.hosts[thread].operations
            flaw = self.call(operations[number % len(operations)], call, f"host thread {thread}")
            if flaw is not None:
                return flaw
        # What a page shows meanwhile is known once all calls are applied.
        for who, op, interval in self._writes:
            self.words.write(who, op.place.mapping, op.place.offset, interval, op.value)
        return None

    def stores(self, mapping: str, page: int, interval: Interval) -> Sequence[PageKey]:
        """Return the pages, by the mapping that holds them, that a page may show in an interval."""
        track = self._shows.get((mapping, page))
        if track is None:
            return (self._backing.store(mapping, page),)
        return track.within(*interval)

    def shown_now(self) -> dict[PageKey, PageKey]:
        """Return what the pages show now that show something else at some time."""
        return {page: track.last for page, track in self._shows.items()}

    @property
    def shown_anew(self) -> Iterable[PageKey]:
        """The pages that show something else at some time."""
        return self._shows

    def may_come_to(self, op: HostAction) -> tuple[CallOutcome, ...]:
        """Return the outcomes that the rules allow for a call in the current state."""
        if isinstance(op, HostWrite | ChangeHostMemory):
            return (_of_the_host(op)[0],)
        outcomes = (each.outcome for each in self._allowed(op))
        return tuple(outcome for outcome in outcomes if isinstance(outcome, CallOutcome))

    def emptied(self, op: ChangeHostMemory) -> list[PageKey]:
        """Return the pages that read as zeros after a change that comes next."""
        return self._backing.emptied(op)

    def call(self, op: HostAction, call: Call, who: str) -> Flaw | None:
        """Apply a call; return what is wrong with it, if anything is."""
        interval = call.begin, call.end
        match op:
            case SetUserMemoryRegion():
                return self._region(op, call)
            case GetDirtyLog():
                return self._get_log(op, call)
            case ClearDirtyLog():
                return self._clear_log(op, call)
            case HarvestDirtyRing() | ResetDirtyRings():
                return self._use_ring(op, call)
            case HostWrite():
                self._writes.append((who, op, interval))
            case CloseGuestMemfd() | PunchGuestMemfd():
                return self._use_file(op, call, who)
            case SetMemoryAttributes():
                return self._convert(op, call)
            case ChangeHostMemory():
                self._change_memory(op, interval, who)
                self.rules.add(HOST_FOLLOWS)
            case _:
                assert_never(op)
        expected, rule = _of_the_host(op)
        if rule is not HARNESS:
            self.rules.add(rule)
        if call.outcome == expected:
            return None
        return Flaw(op, interval, ((expected, rule),), call.outcome)

    def changes_slots_within(self, begin: int, end: int) -> bool:
        """Whether a region call was in progress at some moment from ``begin`` to ``end``."""
        return any(first < end and begin < last for first, last in self._changes)

    def converts_within(self, gfn: int, begin: int, end: int) -> bool:
        """Whether attributes of a gfn were being set at some moment from ``begin`` to ``end``."""
        return any(
            gfn in gfns and first < end and begin < last
            for gfns, (first, last) in self._conversions
        )

    def _region(self, op: SetUserMemoryRegion, call: Call) -> Flaw | None:
        self._changes.append((call.begin, call.end))
        allowed = self._allowed(op)
        old = self._slot(op.slot)
        chosen = next((a for a in allowed if a.outcome == call.outcome), None)
        if chosen is None:
            return Flaw(op, (call.begin, call.end), allowing(allowed), call.outcome)
        chosen.adopt()
        self.rules.add(chosen.rule)
        new = self._slot(op.slot)
        if new is old:
            return None
        interval = call.begin, call.end
        moved = old is not None and new is not None and old.base_gfn != new.base_gfn
        for view, track in self.places.items():
            if view[0] != as_id_of(op.slot):
                continue
            state = self._reached(view)
            # A move invalidates the slot before it puts it elsewhere (kvm_invalidate_memslot).
            gone = BARE if self._is_private(view) else None
            passing = (gone,) if moved and track.last != gone else ()
            if state != track.last or (passing and _holds(old, view[1])):
                track.change(*interval, state, passing)
        self._switch_log(old, new, interval)
        return None

    def _switch_log(self, old: Memslot | None, new: Memslot | None, interval: Interval) -> None:
        was = old is not None and old.dirty is not None
        if new is not None and new.dirty is not None:
            if was:
                logging = self._logging(new.number)
                logging.anew.append(interval)
                logging.tracked = min(logging.tracked, interval[1])
                return
            self._begin_log(new, interval)
            if self.tracking.leaves_unprotected(new, old):
                self.logs[-1].tracked = inf
            if self.tracking.ring is None:
                for page in new.dirty:
                    self.logs[-1].holds(page)
        elif old is not None and was:
            self._logging(old.number).off = interval

    def _begin_log(self, slot: Memslot, interval: Interval) -> None:
        self.logs.append(Logging(slot.number, interval, tracked=interval[1]))

    def _take_log_over(self, slot: Memslot) -> None:
        for page in slot.dirty or ():
            self.logs[-1].wrote(page, BEFORE, True)
        for page in slot.perhaps:
            self.logs[-1].wrote(page, BEFORE, False)

    def _logging(self, slot: int) -> Logging:
        return next(log for log in reversed(self.logs) if log.slot == slot)

    def _get_log(self, op: GetDirtyLog, call: Call) -> Flaw | None:
        allowed = self._allowed(op)
        interval = call.begin, call.end
        for each in allowed:
            if isinstance(each.outcome, Refused) and each.outcome == call.outcome:
                return None
            if not isinstance(each.outcome, DirtyPages) or not isinstance(call.outcome, DirtyPages):
                continue
            if each.outcome.fills(call.outcome):
                each.adopt()
                pages = frozenset(call.outcome.pages)
                clears = not self.tracking.manual
                self._logging(op.slot).read(interval, pages, clears)
                return None
        return Flaw(op, interval, allowing(allowed), call.outcome)

    def _clear_log(self, op: ClearDirtyLog, call: Call) -> Flaw | None:
        allowed = self._allowed(op)
        interval = call.begin, call.end
        chosen = next((a for a in allowed if a.outcome == call.outcome), None)
        if chosen is None:
            return Flaw(op, interval, allowing(allowed), call.outcome)
        self.rules.add(chosen.rule)
        if call.outcome == Done():
            within = range(op.first_page, op.first_page + op.num_pages)
            pages = frozenset(within if op.pages == "all" else op.pages)
            self._logging(op.slot).cleared(interval, pages)
        return None

    def _use_file(self, op: CloseGuestMemfd | PunchGuestMemfd, call: Call, who: str) -> Flaw | None:
        flaw = self._adopt(op, call)
        if flaw is None and call.outcome == Done() and isinstance(op, PunchGuestMemfd):
            for page in range(pages_of(op.offset), pages_of(op.offset + op.size)):
                self.words.clear_page(who, op.name, page, (call.begin, call.end))
        return flaw

    def _convert(self, op: SetMemoryAttributes, call: Call) -> Flaw | None:
        first = op.address // PAGE_SIZE_BYTES
        gfns = range(first, first + pages_of(op.size))
        self._conversions.append((gfns, (call.begin, call.end)))
        return self._adopt(op, call)

    def _adopt(
        self, op: CloseGuestMemfd | PunchGuestMemfd | SetMemoryAttributes, call: Call
    ) -> Flaw | None:
        """Apply a call to files or attributes, and note what gfns reach since."""
        allowed = self._allowed(op)
        chosen = next((a for a in allowed if a.outcome == call.outcome), None)
        if chosen is None:
            return Flaw(op, (call.begin, call.end), allowing(allowed), call.outcome)
        chosen.adopt()
        self.rules.add(chosen.rule)
        for view, track in self.places.items():
            state = self._reached(view)
            if state != track.last:
                track.change(call.begin, call.end, state)
        return None

    def _use_ring(self, op: HarvestDirtyRing | ResetDirtyRings, call: Call) -> Flaw | None:
        """Check that the kind of answer is right; `RingJudge` judges its content later."""
        allowed = self._allowed(op)
        kind = type(allowed[0].outcome)
        if kind in (RingPages, RingsReset) and isinstance(call.outcome, kind):
            return None
        if call.outcome == allowed[0].outcome:
            return None
        return Flaw(op, (call.begin, call.end), allowing(allowed), call.outcome)

    def _change_memory(self, op: ChangeHostMemory, interval: Interval, who: str) -> None:
        affected = self._backing.affected(op)
        for key in self._backing.emptied(op):
            emptied = self._backing.store(*key) if op.how == "punch" else key
            self.words.clear_page(who, *emptied, interval)
        for key in affected:
            self.presence.setdefault(key, Track(self._backing.access(*key)))
        if op.how == "map_file":
            for key in affected:
                self.words.keep(*key)
                self._shows.setdefault(key, Track(self._backing.store(*key)))
        if op.how in ("move_away", "fetch_later"):
            self._note_losing(op.how, affected, interval)
        self._backing.follow(op)
        for key in affected:
            shows = self._shows.get(key)
            if shows is not None and shows.last != self._backing.store(*key):
                shows.change(*interval, self._backing.store(*key))
        if CHANGES[op.how].access is not None or op.how in ("truncate", "extend"):
            for key in affected:
                self.presence[key].change(*interval, self._backing.access(*key))

    def _note_losing(self, how: str, pages: Iterable[PageKey], interval: Interval) -> None:
        """Note that writes to pages may be lost while a change is under way."""
        for key in pages:
            track = self._losing.setdefault(key, Track(""))
            track.change(*interval, state="", passing=(how,))

    def may_lose(self, mapping: str, page: int, interval: Interval) -> bool:
        """Whether a write to a page may have been lost.

        It went to fresh memory in place of a page that was moved away, or to a page that was
        dropped after it had been copied, for userfaultfd.
        """
        track = self._losing.get((mapping, page))
        return track is not None and any(track.within(*interval))

    def may_be_fresh(self, mapping: str, page: int, interval: Interval) -> bool:
        """Whether an access may have met fresh memory, in place of a page that was moved away."""
        track = self._losing.get((mapping, page))
        return track is not None and "move_away" in track.within(*interval)

    def _is_private(self, view: View) -> bool:
        return view[0] == 0 and not self._is_emulated and self._backing.is_private(view[1])

    def _reached(self, view: View) -> MaybeTranslation:
        as_id, gfn = view
        slot = self._spaces[as_id].find(gfn) if as_id < len(self._spaces) else None
        if self._is_private(view):
            return _private(slot, gfn)
        if slot is None:
            return None
        page = gfn - slot.base_gfn
        place = self._backing.shared(slot, page * PAGE_SIZE_BYTES)
        if place is None:
            self.unclear = True
            return None
        readonly = bool(slot.flags & READONLY)
        return Translation(
            slot.number, page, place.mapping, place.offset // PAGE_SIZE_BYTES, readonly
        )


def _of_the_host(op: HostWrite | ChangeHostMemory) -> tuple[Done | Inspected, Rule]:
    return (Done(), HARNESS) if isinstance(op, HostWrite) else expected_of(op)


def _private(slot: Memslot | None, gfn: int) -> Translation:
    if slot is None:
        return BARE
    if slot.memfd is None or not slot.memfd.is_open:
        return FAULT
    page = gfn - slot.base_gfn
    at = slot.memfd_offset // PAGE_SIZE_BYTES + page
    return Translation(slot.number, page, slot.memfd.name, at, readonly=False)


def _holds(slot: Memslot | None, gfn: int) -> bool:
    return slot is not None and slot.base_gfn <= gfn < slot.base_gfn + slot.npages


def _views(race: Race) -> Iterable[View]:
    return dict.fromkeys(view_of(op) for guest in race.guests for op in guest.program)


def _in_order(race: Race, calls: tuple[tuple[Call, ...], ...]) -> Iterator[tuple[int, int, Call]]:
    """Yield (host thread, number of the call, call) in the order of invocation."""
    each = (
        (thread, number, call)
        for thread, made in enumerate(calls[: len(race.hosts)])
        for number, call in enumerate(made)
    )
    return iter(sorted(each, key=lambda item: item[2].begin))
