"""Judges dirty rings that are harvested and reset while vCPUs write.

A write adds an entry to its vCPU's ring, unless some ring already has an entry for the page that
was not reset since: then that entry covers this write, too.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

from vmm.model.races.flaw import Flaw
from vmm.model.races.logs import Logging, PageWrite
from vmm.model.rings import RING_RESET, RingState, SlotPage
from vmm.model.rule import documented
from vmm.scenario.history import Raced, RingPages, RingsReset
from vmm.scenario.operations import HarvestDirtyRing, Race, ResetDirtyRings

RACE_RING = documented(
    "race-ring",
    "when rings are harvested and reset while vCPUs write, each names only pages that its vCPU "
    "wrote since the harvest before, and every write after the reset of its page is named; a "
    "vCPU stops only if its ring is nearly full",
    "api.rst KVM_CAP_DIRTY_LOG_RING",
)


_END = 1 << 62
_RULE = RACE_RING


@dataclass(frozen=True, slots=True)
class _Harvest:
    begin: int
    end: int
    found: RingPages


@dataclass(frozen=True, slots=True)
class _Reset:
    begin: int
    end: int
    entries: int


class _Sums:
    """Sums numbers of entries up to a moment."""

    def __init__(self, numbers: Iterable[tuple[int, int]]) -> None:
        in_order = sorted(numbers)
        self._moments = [moment for moment, _ in in_order]
        self._sums = list(accumulate((number for _, number in in_order), initial=0))

    def before(self, moment: int) -> int:
        return self._sums[bisect_left(self._moments, moment)]


@dataclass(slots=True)
class _Ring:
    """One vCPU's ring: its harvests in order, and which of them name a page."""

    harvests: list[_Harvest]
    begins: list[int] = field(init=False)
    ends: list[int] = field(init=False)
    named: dict[SlotPage, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.begins = [each.begin for each in self.harvests]
        self.ends = [each.end for each in self.harvests]
        self.named = defaultdict(list)
        for number, harvest in enumerate(self.harvests):
            for page in harvest.found.pages:
                self.named[page].append(number)

    def names(self, page: SlotPage, since: float, until: float) -> bool:
        """Whether a harvest that ended after ``since`` names a page.

        The last harvest that counts is the first one that began after ``until``.
        """
        numbers = self.named.get(page, ())
        index = bisect_left(numbers, bisect_right(self.ends, since))
        return index < len(numbers) and numbers[index] <= bisect_right(self.begins, until)


class RingJudge:
    """Judges the rings of one race, and updates the model's rings to the state after it."""

    def __init__(self, race: Race, state: RingState) -> None:
        self._race = race
        self._state = state
        self._untracked = set(state.untracked)
        self._before = [state.waiting(vcpu) for vcpu in range(len(race.guests))]
        self._rings: list[_Ring] = []
        self._resets: list[_Reset] = []
        self._latest: list[int] = []

    def flaw(self, outcome: Raced, logs: list[Logging]) -> Flaw | None:
        """Return the first thing that is wrong with the rings; None if nothing is."""
        self._collect(outcome)
        writes = self._writes(logs)
        wrong = (
            self._wrong_counts(),
            self._full_too_early(outcome),
            self._invented(writes),
            self._left_out(),
            self._lost(logs, writes),
        )
        flaw = next((flaw for flaws in wrong for flaw in flaws), None)
        if flaw is None:
            self._leave()
        return flaw

    def _collect(self, outcome: Raced) -> None:
        harvests: list[list[_Harvest]] = [[] for _ in self._race.guests]
        for thread, calls in zip(self._race.hosts, outcome.calls, strict=True):
            for number, call in enumerate(calls):
                op = thread.operations[number % len(thread.operations)]
                if isinstance(op, HarvestDirtyRing) and isinstance(call.outcome, RingPages):
                    harvests[op.vcpu].append(_Harvest(call.begin, call.end, call.outcome))
                elif isinstance(call.outcome, RingsReset):
                    self._resets.append(_Reset(call.begin, call.end, call.outcome.entries))
        for vcpu, helped in enumerate(outcome.helped):
            for call in helped:
                if isinstance(call.outcome, RingPages):
                    harvests[vcpu].append(_Harvest(call.begin, call.end, call.outcome))
                elif isinstance(call.outcome, RingsReset):
                    self._resets.append(_Reset(call.begin, call.end, call.outcome.entries))
        for vcpu, found in enumerate(outcome.rings):
            harvests[vcpu].append(_Harvest(_END, _END + 1, found))
        self._rings = [_Ring(sorted(each, key=lambda h: h.begin)) for each in harvests]
        self._resets.sort(key=lambda reset: reset.end)
        self._latest = list(accumulate((reset.begin for reset in self._resets), max))

    def _writes(self, logs: Iterable[Logging]) -> dict[tuple[int, SlotPage], list[PageWrite]]:
        """Return all writes by vCPU and page, in the order of invocation."""
        found: dict[tuple[int, SlotPage], list[PageWrite]] = defaultdict(list)
        for log in logs:
            for page, writes in log.writes.items():
                for write in writes:
                    found[write.vcpu, (log.slot, page)].append(write)
        for each in found.values():
            each.sort(key=lambda write: write.begin)
        return found

    def _wrong_counts(self) -> Iterator[Flaw]:
        """Yield resets that took more or fewer entries than were harvested by then."""
        if self._untracked:
            return  # It is unknown how many entries were harvested before the race.
        harvests = [each for ring in self._rings for each in ring.harvests]
        harvested = _Sums((each.end, each.found.entries) for each in harvests)
        begun = _Sums((each.begin, each.found.entries) for each in harvests)
        reset_by = _Sums((each.end, each.entries) for each in self._resets)
        resetting = _Sums((each.begin, each.entries) for each in self._resets)
        for reset in self._resets:
            others = resetting.before(reset.end) - reset.entries
            least = harvested.before(reset.begin) - others
            most = begun.before(reset.end) - reset_by.before(reset.begin)
            if not least <= reset.entries <= most:
                yield Flaw(
                    ResetDirtyRings(),
                    (reset.begin, reset.end),
                    ((RingsReset(most, most), RING_RESET),),
                    RingsReset(reset.entries, most),
                    f"{max(least, 0)} to {most} entries had been harvested and not reset",
                )

    def _full_too_early(self, outcome: Raced) -> Iterator[Flaw]:
        """Yield stops at a full ring that cannot have been full."""
        for vcpu, (helped, windows) in enumerate(
            zip(outcome.helped, outcome.windows, strict=False)
        ):
            begins = [window.begin for window in windows]
            last = -1
            for call in helped:
                if isinstance(call.outcome, RingPages):
                    window = bisect_left(begins, call.begin) - 1
                    since = max(last, begins[window]) if window >= 0 else last
                    used = self._used(vcpu, since, call.end)
                    if used < self._state.soft_limit:
                        yield Flaw(
                            HarvestDirtyRing(vcpu),
                            (call.begin, call.end),
                            ((RingPages(call.outcome.pages), _RULE),),
                            RingPages(call.outcome.pages, full=1),
                            f"the vCPU stopped, though its ring held {used} entries at the most",
                        )
                last = call.end

    def _used(self, vcpu: int, since: int, until: int) -> int:
        """Return how many entries a ring can have held at most from ``since`` to ``until``."""
        reset = self._settled(since)
        return sum(
            each.found.entries
            for each in self._rings[vcpu].harvests
            if each.begin < until and each.end > reset
        )

    def _settled(self, moment: float) -> float:
        """Return the latest begin of a reset that was over by then: earlier harvests are reset."""
        index = bisect_left(self._resets, moment, key=lambda reset: reset.end)
        return self._latest[index - 1] if index else -inf

    def _invented(self, writes: dict[tuple[int, SlotPage], list[PageWrite]]) -> Iterator[Flaw]:
        """Yield harvests that name a page that the vCPU has not written since the previous one."""
        for vcpu, ring in enumerate(self._rings):
            since: float = -inf
            known = set().union(*self._before[vcpu])
            for harvest in ring.harvests:
                for page in harvest.found.pages:
                    made = writes.get((vcpu, page), ())
                    if page not in known and not any(
                        write.begin < harvest.end and write.end > since for write in made
                    ):
                        yield _wrong(vcpu, harvest, page, False)
                since, known = harvest.begin, set()

    def _left_out(self) -> Iterator[Flaw]:
        """Yield rings whose first harvest lacks what they held before the race."""
        for vcpu, ring in enumerate(self._rings):
            for page in self._before[vcpu][0]:
                if ring.harvests and page not in ring.harvests[0].found.pages:
                    yield _wrong(vcpu, ring.harvests[0], page, True)

    def _lost(
        self, logs: Iterable[Logging], writes: dict[tuple[int, SlotPage], list[PageWrite]]
    ) -> Iterator[Flaw]:
        """Yield writes that no entry covers."""
        for log in logs:
            for number, made in log.writes.items():
                page = log.slot, number
                for write in made:
                    if write.certain and not self._stands_for(log, page, write, writes):
                        ring = self._rings[write.vcpu]
                        index = min(bisect_right(ring.begins, write.end), len(ring.harvests) - 1)
                        note = f"a write took place within [{write.begin}, {write.end}]"
                        yield _wrong(write.vcpu, ring.harvests[index], page, True, note)

    def _stands_for(
        self,
        log: Logging,
        page: SlotPage,
        write: PageWrite,
        writes: dict[tuple[int, SlotPage], list[PageWrite]],
    ) -> bool:
        """Whether an entry in some ring covers this write.

        The entry was made before or by the write; or by another vCPU that wrote the page at the
        same time, at the latest when that write ended.
        """
        since = max(
            self._settled(write.begin),
            *(begin for begin, end in log.anew if end < write.begin),
            log.on[0],
        )
        if since < -1 and page in self._untracked:
            return True
        for vcpu, ring in enumerate(self._rings):
            until: float = write.end
            if vcpu != write.vcpu:
                beside = writes.get((vcpu, page), ())
                index = bisect_left(beside, write.end, key=lambda each: each.begin) - 1
                until = max(until, beside[index].end) if index >= 0 else until
            if ring.names(page, since, until):
                return True
        return False

    def _leave(self) -> None:
        """Empty the model's rings, and mark as untracked the pages that were surely not reset."""
        reset = self._settled(inf)
        used: dict[int, int] = {}
        untracked = set() if self._resets else set(self._untracked)
        for vcpu, ring in enumerate(self._rings):
            late = [each for each in ring.harvests if each.end > reset]
            used[vcpu] = sum(each.found.entries for each in late)
            untracked.update(page for each in late for page in each.found.pages)
        self._state.settle(used, untracked)


def _wrong(vcpu: int, harvest: _Harvest, page: SlotPage, missing: bool, note: str = "") -> Flaw:
    found = set(harvest.found.pages)
    right = found | {page} if missing else found - {page}
    return Flaw(
        HarvestDirtyRing(vcpu),
        (harvest.begin, harvest.end),
        ((RingPages(tuple(sorted(right))), _RULE),),
        RingPages(tuple(sorted(found))),
        note,
    )
