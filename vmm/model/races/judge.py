"""Judges whether a race is linearizable, by the intervals of all calls and accesses.

A call takes effect at an unknown moment between its invocation and its response, and so does an
access within its window. An access whose interval overlaps that of a call may find the state before
or after the call; one that overlaps no call finds the state after the last one.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import assert_never

from vmm.model.accesses import CANNOT_FETCH
from vmm.model.races.calls import (
    BARE,
    NO_MEMORY,
    HostSide,
    Interval,
    MaybeTranslation,
    Translation,
    view_of,
)
from vmm.model.races.clocks import RaceClock, RaceClocks
from vmm.model.races.flaw import Expectation, Flaw
from vmm.model.races.rings import RACE_RING, RingJudge
from vmm.model.races.state import RaceState
from vmm.model.races.words import WORD_BYTES
from vmm.model.rings import RING_RESET
from vmm.model.rule import Rule, documented, source
from vmm.scenario.content import MMIO_FILL, identity
from vmm.scenario.history import (
    DirtyPages,
    HostChange,
    Inspected,
    Met,
    Mmio,
    PreFaulted,
    Raced,
    Refused,
    Stopped,
    Touched,
    private_fault,
)
from vmm.scenario.hostpages import Access as HostAccess, PageKey
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    Execute,
    GetDirtyLog,
    Inspect,
    PreFaultMemory,
    Race,
    Touch,
)
from vmm.scenario.windows import in_window

RACE_REACH = source(
    "race-reach",
    "an access sees what its gpa reaches at some moment of its interval: a call under way has "
    "taken effect or has not, one that has returned has",
    "kvm_swap_active_memslots: synchronize_srcu; mmu_invalidate_retry_gfn; api.rst 4.35",
)
RACE_CONTENT = source(
    "race-content",
    "after a race memory holds what was written last, and memory that nobody wrote is unchanged",
    "kvm_vcpu_write_guest; api.rst 4.35",
)
RACE_DIRTY = documented(
    "race-dirty",
    "when logs are read and cleared while vCPUs write, each names only pages that were written "
    "since they were cleared, and every write is named until its page is cleared",
    "api.rst 4.8, 4.117",
)
RACE_PRE_FAULT = source(
    "race-pre-fault",
    "a page that is mapped ahead while its slot changes is mapped, has no slot, or is EAGAIN, "
    "and neither call waits for the other",
    "3ccbf6f47098; kvm_mmu_faultin_pfn",
)

_FILLED = int.from_bytes(bytes([MMIO_FILL]) * WORD_BYTES, "little")

_UNTOLD = Stopped("EFAULT")
"""A fault without a slot of which KVM_EXIT_MEMORY_FAULT does not say that it is private."""

Access = tuple[int, int, Interval, Touch | Execute | PreFaultMemory, Met]
"""(vCPU, number of the window, its interval, what the guest did, its outcome)."""


class RaceJudge:
    """Judges one race from the state before it, and brings the model to the state after it."""

    def __init__(self, race: Race, state: RaceState, clocks: Sequence[RaceClock] = ()) -> None:
        self._race = race
        self._contents = state.contents
        self._tracking = state.tracking
        self._backing = state.backing
        self._mappings = state.backing.names
        self._host = HostSide(race, state, [clock.gpa // PAGE_SIZE_BYTES for clock in clocks])
        self._clocks = RaceClocks(clocks, race, self._host, self._writable, self._surely_writable)
        ring = state.tracking.ring
        self._rings = None if ring is None else RingJudge(race, ring)

    @property
    def unknown(self) -> bool:
        """Whether the model does not know what the guests reach; valid after ``flaw``."""
        return (
            self._host.unclear
            or self._clocks.are_met
            or (self._maps_ahead and not self._tracking.features.pre_fault)
        )

    @property
    def _maps_ahead(self) -> bool:
        steps = (step for guest in self._race.guests for step in guest.program)
        return any(isinstance(step, PreFaultMemory) for step in steps)

    @property
    def rules(self) -> set[Rule]:
        """The rules that decided something; valid after ``flaw``."""
        used = {RACE_REACH, RACE_CONTENT, *self._host.rules}
        if self._maps_ahead:
            used.add(RACE_PRE_FAULT)
        if self._rings is not None:
            return used | {RACE_RING, RING_RESET}
        return used | {RACE_DIRTY} if self._host.logs else used

    def flaw(self, outcome: Raced) -> Flaw | None:
        """Return the first thing that is wrong, in order of kinds; None if nothing is."""
        return (
            self._host.play(outcome)
            or self._first_wrong(_accesses(self._race, outcome, writes=True), self._wrong_write)
            or self._first_wrong(_accesses(self._race, outcome, writes=False), self._wrong_read)
            or self._wrong_rings(outcome)
            or self._wrong_log(outcome)
            or self._wrong_content(outcome.changes)
        )

    def _first_wrong(
        self, accesses: Iterator[Access], wrong: Callable[[Access], tuple[Expectation, ...] | None]
    ) -> Flaw | None:
        for access in accesses:
            expected = wrong(access)
            if expected is not None:
                vcpu, number, interval, op, outcome = access
                return Flaw(op, interval, expected, outcome, f"window {number} of vCPU {vcpu}")
        return None

    def _wrong_write(self, access: Access) -> tuple[Expectation, ...] | None:
        """If a write's outcome is wrong, return the right ones; otherwise note the write."""
        vcpu, _, interval, op, outcome = access
        assert isinstance(op, Touch)
        places = self._host.places[view_of(op)].within(*interval)
        fault = self._private_fault(op, places)
        if outcome == fault or self._is_other_fault(op, places, interval, outcome):
            return None
        places = _without_faults(places, op)
        memory = [p for p in places if p is not None and self._writable(p, interval)]
        denied = any(self._may_be_absent(p, interval, writing=True) for p in memory)
        exits = len(memory) < len(places) or denied
        if outcome == Touched(0) and memory:
            self._note_write(vcpu, op, interval, memory)
            return None
        data = op.value.to_bytes(WORD_BYTES, "little")
        leaving = Touched(0, (Mmio(op.gpa, True, data),))
        faulted = self._may_fault(outcome, places, interval, writing=True)
        if exits and (outcome == leaving or faulted):
            return None
        expected: list[Expectation] = [(Touched(0), RACE_REACH)] if memory else []
        expected += [(leaving, RACE_REACH)] if exits else []
        return (*expected, *([(fault, RACE_REACH)] if fault else []))

    def _private_fault(
        self, op: Touch | Execute | PreFaultMemory, places: Sequence[MaybeTranslation]
    ) -> Stopped | Refused | None:
        """Return how a vCPU stops at a private gpa without private memory; None if it met none."""
        if not any(place in NO_MEMORY for place in places):
            return None
        if isinstance(op, PreFaultMemory):
            return Refused(errno.EFAULT)
        return private_fault(op.gpa & -PAGE_SIZE_BYTES, PAGE_SIZE_BYTES)

    def _is_other_fault(
        self,
        op: Touch | Execute | PreFaultMemory,
        places: Sequence[MaybeTranslation],
        interval: Interval,
        outcome: Met,
    ) -> bool:
        """Whether a vCPU stopped without a slot, or while its gpa was converted, as it may."""
        is_untold = BARE in places and outcome == _UNTOLD
        return is_untold or self._is_converted(op, interval, outcome)

    def _is_converted(
        self, op: Touch | Execute | PreFaultMemory, interval: Interval, outcome: Met
    ) -> bool:
        """Whether a vCPU stopped because its gpa was converted while the kernel handled a fault."""
        gfn, page = op.gpa // PAGE_SIZE_BYTES, op.gpa & -PAGE_SIZE_BYTES
        stops = (Stopped("EFAULT"), private_fault(page, PAGE_SIZE_BYTES), Refused(errno.EFAULT))
        return outcome in stops and self._host.converts_within(gfn, *interval)

    def _note_write(
        self, vcpu: int, op: Touch, interval: Interval, places: list[Translation]
    ) -> None:
        certain = len(places) == 1
        offset = op.gpa % PAGE_SIZE_BYTES
        for place in places:
            at = place.page * PAGE_SIZE_BYTES + offset
            who = f"vCPU {vcpu}"
            lasts = certain and not self._host.may_lose(place.mapping, place.page, interval)
            self._host.words.write(who, place.mapping, at, interval, op.value, lasts)
            self._note_dirty(vcpu, place, interval, certain)

    def _note_dirty(self, vcpu: int, place: Translation, interval: Interval, certain: bool) -> None:
        for log in self._host.logs:
            if log.slot == place.slot:
                log.wrote(place.slot_page, interval, certain, vcpu)

    def _wrong_read(self, access: Access) -> tuple[Expectation, ...] | None:
        vcpu, _, interval, op, outcome = access
        places = self._host.places[view_of(op)].within(*interval)
        if self._tracking.features.reads_make_dirty:
            for place in places:
                if place is not None:
                    self._note_dirty(vcpu, place, interval, False)
        fault = self._private_fault(op, places)
        if outcome == fault or self._is_other_fault(op, places, interval, outcome):
            return None
        places = _without_faults(places, op)
        expected = [each for place in places for each in self._found(op, place, interval)]
        expected += [(fault, RACE_REACH)] if fault else []
        if any(outcome == right for right, _ in expected):
            return None
        if isinstance(op, Touch) and self._may_fault(outcome, places, interval):
            return None
        if isinstance(outcome, Stopped) and any(right.admits(outcome) for right, _ in expected):
            return None
        return tuple(dict.fromkeys(expected))

    def _found(
        self, op: Touch | Execute | PreFaultMemory, place: MaybeTranslation, interval: Interval
    ) -> Iterator[Expectation]:
        match op:
            case Touch():
                return self._read(op, place, interval)
            case Execute():
                return self._fetched(place, interval)
            case PreFaultMemory():
                return self._mapped_ahead(op, place, interval)
            case _:
                assert_never(op)

    def _mapped_ahead(
        self, op: PreFaultMemory, place: MaybeTranslation, interval: Interval
    ) -> Iterator[Expectation]:
        rule = RACE_PRE_FAULT
        if place is None:
            yield Refused(errno.ENOENT), rule
        elif self._may_be_absent(place, interval):
            yield Refused(errno.EFAULT), rule
        if place is not None and self._may_be_present(place, interval):
            yield PreFaulted(op.gpa + op.size), rule
        if self._host.changes_slots_within(*interval):
            yield Refused(errno.EAGAIN), rule

    def _read(
        self, op: Touch, place: MaybeTranslation, interval: Interval
    ) -> Iterator[Expectation]:
        if place is None or self._may_be_absent(place, interval):
            fill = bytes([MMIO_FILL]) * WORD_BYTES
            yield Touched(_FILLED, (Mmio(op.gpa, False, fill),)), RACE_REACH
        if place is not None and self._may_be_present(place, interval):
            offset = place.page * PAGE_SIZE_BYTES + op.gpa % PAGE_SIZE_BYTES
            for value in self._host.words.values(place.mapping, offset, *interval):
                yield Touched(value), RACE_REACH
            if self._host.may_be_fresh(place.mapping, place.page, interval):
                yield Touched(0), RACE_REACH

    def _fetched(self, place: MaybeTranslation, interval: Interval) -> Iterator[Expectation]:
        if place is None or self._may_be_absent(place, interval):
            for reason in CANNOT_FETCH:
                yield Stopped(reason), RACE_REACH
        if place is not None and self._may_be_present(place, interval):
            if place.mapping not in self._mappings:
                self._host.unclear = True  # A guest_memfd has no code of ours.
                return
            tagged = self._mappings.index(self._backing.file_of(place.mapping))
            yield Touched(identity(tagged, place.page)), RACE_REACH

    def _writable(self, place: Translation, interval: Interval) -> bool:
        return not place.readonly and "everything" in self._access(place, interval)

    def _surely_writable(self, place: Translation, interval: Interval) -> bool:
        return not place.readonly and not self._may_be_absent(place, interval, writing=True)

    def _may_be_present(self, place: Translation, interval: Interval) -> bool:
        return any(access != "nothing" for access in self._access(place, interval))

    def _may_be_absent(
        self, place: Translation, interval: Interval, *, writing: bool = False
    ) -> bool:
        denied = ("nothing", "reading") if writing else ("nothing",)
        return any(access in denied for access in self._access(place, interval))

    def _access(self, place: Translation, interval: Interval) -> list[HostAccess]:
        """Return how the host may have been able to access a page during an interval."""
        track = self._host.presence.get((place.mapping, place.page))
        return ["everything"] if track is None else track.within(*interval)

    def _may_fault(
        self,
        outcome: Met,
        places: list[MaybeTranslation],
        interval: Interval,
        *,
        writing: bool = False,
    ) -> bool:
        """Whether the outcome is EFAULT, and the host may have had nothing mapped there."""
        absent = any(
            place is not None and self._may_be_absent(place, interval, writing=writing)
            for place in places
        )
        return absent and isinstance(outcome, Stopped) and outcome.reason == "EFAULT"

    def _wrong_rings(self, outcome: Raced) -> Flaw | None:
        return None if self._rings is None else self._rings.flaw(outcome, self._host.logs)

    def _wrong_log(self, outcome: Raced) -> Flaw | None:
        if self._rings is not None:
            return None
        self._clocks.note_dirty(outcome, self._note_dirty)
        for log in self._host.logs:
            op = GetDirtyLog(log.slot)
            for read, page in log.invented():
                pages = tuple(sorted(read.pages - {page}))
                return _wrong_read_of_log(op, read.begin, read.end, pages, read.pages)
            for read, page, write in log.lost():
                pages = tuple(sorted(read.pages | {page}))
                note = f"a write to page {page} took place within [{write.begin}, {write.end}]"
                return _wrong_read_of_log(op, read.begin, read.end, pages, read.pages, note)
        self._leave_logs()
        return None

    def _leave_logs(self) -> None:
        for slot in self._host.slots:
            logs = [log for log in self._host.logs if log.slot == slot.number]
            if slot.dirty is not None and logs:
                slot.dirty, slot.perhaps = logs[-1].left()

    def _wrong_content(self, changes: tuple[HostChange, ...]) -> Flaw | None:
        """Compare the final content of the mappings with what was written, and adopt it."""
        written = [
            view for store in self._host.words.pages() for view in self._backing.views(store)
        ]
        anew = tuple(self._host.shown_anew)
        found = {
            key: bytearray(self._page(*key))
            for key in (*written, *anew)
            if not self._backing.is_absent(*key)
        }
        for change in changes:
            page, at = divmod(change.offset, PAGE_SIZE_BYTES)
            key = change.mapping, page
            found.setdefault(key, bytearray(self._page(*key)))
            found[key][at : at + len(change.data)] = change.data
        end = 1 << 62
        veiled = {(self._backing.file_of(name), at) for name, at in self._clocks.words()}
        for (mapping, page), data in found.items():
            holder, held = self._backing.store(mapping, page)
            for at in range(0, PAGE_SIZE_BYTES, WORD_BYTES):
                offset = page * PAGE_SIZE_BYTES + at
                if (holder, held * PAGE_SIZE_BYTES + at) in veiled:
                    continue
                value = int.from_bytes(data[at : at + WORD_BYTES], "little")
                right = self._host.words.values(mapping, offset, end, end + 1)
                if value not in right:
                    return _wrong_word(mapping, offset, value, right)
        for change in changes:
            self._contents.write(change.mapping, change.offset, change.data)
        for key in anew:
            self._leave_shown_anew(key, found.get(key))
        for store in self._host.words.pages():
            views = tuple(self._backing.views(store))
            if views and all(self._backing.is_absent(*view) for view in views):
                self._leave_unseen(*store)
        for key in self._host.words.pages():
            if key[0] not in self._mappings:  # The host sees nothing of private memory.
                self._leave_unseen(*key)
        self._contents.forget_changes()
        for write in self._clocks.writes():
            self._contents.kernel_writes(write, surely=False)
        return None

    def _leave_shown_anew(self, key: PageKey, data: bytearray | None) -> None:
        """Adopt the content of a page that other memory was mapped over at some time."""
        if self._backing.store(*key) != key:
            self._contents.hide(*key)
        elif data is not None:
            self._contents.write(key[0], key[1] * PAGE_SIZE_BYTES, bytes(data))

    def _leave_unseen(self, mapping: str, page: int) -> None:
        """Adopt the content of a page that the host cannot read, which may be unknown."""
        words, end = self._host.words, 1 << 62
        key = mapping, page
        if words.is_cleared(key):
            self._contents.write(mapping, page * PAGE_SIZE_BYTES, bytes(PAGE_SIZE_BYTES))
        for offset in words.words_of(key):
            values = words.values(mapping, offset, end, end + 1)
            if len(values) == 1:
                data = values[0].to_bytes(WORD_BYTES, "little")
                self._contents.write(mapping, offset, data)
            else:
                self._contents.blur(mapping, offset, WORD_BYTES)

    def _page(self, mapping: str, page: int) -> bytes:
        kept = self._host.words.kept(mapping, page)
        return kept or self._contents.read(mapping, page * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES)


def _without_faults(
    places: Sequence[MaybeTranslation], op: Touch | Execute | PreFaultMemory
) -> list[MaybeTranslation]:
    """Return what an access may have reached besides a fault; without a slot it may be MMIO."""
    found = [place for place in places if place not in NO_MEMORY]
    return [*found, None] if BARE in places and isinstance(op, Touch) else found


def _accesses(race: Race, outcome: Raced, *, writes: bool) -> Iterator[Access]:
    """Yield all writes, or all other accesses, of all windows, vCPU by vCPU."""
    for vcpu, (guest, windows, seen) in enumerate(
        zip(race.guests, outcome.windows, outcome.seen, strict=True)
    ):
        wanted = [
            (index, op)
            for index, op in enumerate(guest.program)
            if (isinstance(op, Touch) and op.access == "write") is writes
        ]
        for number, window in enumerate(windows):
            outcomes = seen[window.seen]
            for index, op in wanted:
                made = in_window(op, number)
                yield vcpu, number, (window.begin, window.end), made, outcomes[index]


def _wrong_read_of_log(
    op: GetDirtyLog,
    begin: int,
    end: int,
    right: tuple[int, ...],
    observed: frozenset[int],
    note: str = "",
) -> Flaw:
    return Flaw(
        op,
        (begin, end),
        ((DirtyPages(right), RACE_DIRTY),),
        DirtyPages(tuple(sorted(observed))),
        note,
    )


def _wrong_word(mapping: str, offset: int, value: int, right: list[int]) -> Flaw:
    def one(word: int) -> Inspected:
        data = word.to_bytes(WORD_BYTES, "little")
        return Inspected((HostChange(mapping, offset, data),))

    expected = tuple((one(word), RACE_CONTENT) for word in right)
    return Flaw(Inspect(), (-1, -1), expected, one(value), "when all threads had ended")
