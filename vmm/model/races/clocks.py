"""Clocks that KVM writes during a race: where they may be, and what logs must name."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from vmm.model.races.calls import HostSide, Interval, Translation
from vmm.model.races.words import WORD_BYTES
from vmm.scenario.clocks import LAYOUTS, ClockWrite
from vmm.scenario.history import Raced
from vmm.scenario.operations import PAGE_SIZE_BYTES, Clock, Execute, HostWrite, Race, Touch

_EVER: Interval = (-1, 1 << 62)


class RaceClock(NamedTuple):
    """A clock of a vCPU, at a gpa."""

    vcpu: int
    clock: Clock
    gpa: int


def are_met(race: Race, clocks: Iterable[RaceClock]) -> bool:
    """Whether any access may hit bytes of a clock, wherever its gpa is mapped."""
    hosts = (op for host in race.hosts for op in host.operations)
    guests = (op for guest in race.guests for op in guest.program)
    used = {op.place.offset % PAGE_SIZE_BYTES for op in hosts if isinstance(op, HostWrite)}
    used |= {op.gpa % PAGE_SIZE_BYTES for op in guests if isinstance(op, Touch)}
    return any(
        at + WORD_BYTES > gpa % PAGE_SIZE_BYTES and at < gpa % PAGE_SIZE_BYTES + LAYOUTS[clock].size
        for _, clock, gpa in clocks
        for at in used
    )


def runs_a_vcpu(race: Race, vcpu: int) -> bool:
    """Whether each window of a vCPU runs it."""
    return any(isinstance(op, Touch | Execute) for op in race.guests[vcpu].program)


def words_of(writes: Iterable[ClockWrite]) -> set[tuple[str, int]]:
    """Return the words that the structures cover, by mapping and offset."""
    return {
        (write.mapping, (write.offset + at) // WORD_BYTES * WORD_BYTES)
        for write in writes
        for start, end in LAYOUTS[write.clock].written
        for at in range(start, end)
    }


class RaceClocks:
    """What KVM may have written, and must have written, in a race.

    ``writable`` says whether memory was writable at some moment of an interval, and ``surely``
    whether it was at every moment.
    """

    def __init__(
        self,
        clocks: Iterable[RaceClock],
        race: Race,
        host: HostSide,
        writable: Callable[[Translation, Interval], bool],
        surely: Callable[[Translation, Interval], bool],
    ) -> None:
        self._clocks = tuple(clocks)
        self._race = race
        self._host = host
        self._writable = writable
        self._surely = surely

    @property
    def are_met(self) -> bool:
        """Whether any access may hit bytes of a clock, so that its value is unknown."""
        return are_met(self._race, self._clocks)

    def note_dirty(
        self, outcome: Raced, note: Callable[[int, Translation, Interval, bool], None]
    ) -> None:
        """Note what logs may or must name: KVM writes the steal time whenever its vCPU runs."""
        for vcpu, clock, gpa in self._clocks:
            track = self._host.places[0, gpa // PAGE_SIZE_BYTES]
            if vcpu >= len(outcome.windows):
                continue
            runs = runs_a_vcpu(self._race, vcpu)
            for window in outcome.windows[vcpu]:
                interval = window.begin, window.end
                places = track.within(*interval)
                for place in places:
                    if place is not None and not place.readonly:
                        alone = len(places) == 1 and self._surely(place, interval)
                        sure = alone and runs and clock == "steal_time"
                        note(vcpu, place, interval, sure)

    def writes(self) -> Iterator[ClockWrite]:
        """Yield each structure that may have been written."""
        for _, clock, gpa in self._clocks:
            for place in self._host.places[0, gpa // PAGE_SIZE_BYTES].within(*_EVER):
                if place is not None and self._writable(place, _EVER):
                    for holder, page in self._host.stores(place.mapping, place.page, _EVER):
                        offset = page * PAGE_SIZE_BYTES + gpa % PAGE_SIZE_BYTES
                        yield ClockWrite(holder, offset, clock)

    def words(self) -> set[tuple[str, int]]:
        """Return the words that may hold anything, by mapping and offset."""
        return words_of(self.writes())
