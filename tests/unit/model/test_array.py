"""The memslot array against a plain dictionary and against the walks it stands for.

`Walks` does what the kernel's array does entry by entry: it has the table from id to index, it
shifts, and it leaves the travelling slot's garbage where the kernel leaves it. `Machine` runs
random updates on it and on `MemslotArray`, and compares everything that can be seen.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vmm.model import array as array_module
from vmm.model.array import ArrayError, Change, Condition, MemslotArray

IDS = 12
GFNS = 24


@dataclass(frozen=True, slots=True)
class Slot:
    slot_id: int
    base_gfn: int
    npages: int = 1
    flags: int = 0


class Walks:
    """The kernel's array, one step at a time. A warning is remembered, and the walk goes on."""

    def __init__(self) -> None:
        self.entries: list[Slot | None] = [None] * (IDS + 1)
        self.table = [-1] * IDS
        self.used = 0
        self.last_used = 0
        self.warnings: list[Condition] = []

    def at(self, index: int) -> Slot:
        slot = self.entries[index]
        assert slot is not None
        return slot

    def shift(self, source: int, target: int) -> None:
        self.entries[target] = self.at(source)
        self.table[self.at(target).slot_id] = target

    def delete(self, slot_id: int) -> None:
        if self.table[slot_id] == -1:
            self.warnings.append(Condition.UNUSED_ID)
            return
        self.used -= 1
        if self.last_used >= self.used:
            self.last_used = 0
        for index in range(self.table[slot_id], self.used):
            self.shift(index + 1, index)
        self.table[slot_id] = -1

    def insert_back(self) -> int:
        self.used += 1
        return self.used - 1

    def move_backward(self, slot: Slot) -> int:
        index = self.table[slot.slot_id]
        if index == -1 or self.used == 0:
            self.warnings.append(Condition.UNUSED_ID)
            return -1
        while index < self.used - 1 and slot.base_gfn <= self.at(index + 1).base_gfn:
            if slot.base_gfn == self.at(index + 1).base_gfn:
                self.warnings.append(Condition.EQUAL_GFN)
            self.shift(index + 1, index)
            index += 1
        return index

    def move_forward(self, slot: Slot, start: int) -> int:
        index = start
        while index > 0 and slot.base_gfn >= self.at(index - 1).base_gfn:
            if slot.base_gfn == self.at(index - 1).base_gfn:
                self.warnings.append(Condition.EQUAL_GFN)
            self.shift(index - 1, index)
            index -= 1
        return index

    def write(self, slot: Slot, index: int) -> None:
        self.entries[index] = slot
        self.table[slot.slot_id] = index

    def search(self, gfn: int) -> Slot | None:
        if self.used == 0:
            return None
        if self.contains(self.last_used, gfn):
            return self.at(self.last_used)
        low, high = 0, self.used
        while low < high:
            middle = (low + high) // 2
            if self.at(middle).base_gfn <= gfn:
                high = middle
            else:
                low = middle + 1
        if low == self.used or not self.contains(low, gfn):
            return None
        self.last_used = low
        return self.at(low)

    def contains(self, index: int, gfn: int) -> bool:
        slot = self.at(index)
        return slot.base_gfn <= gfn < slot.base_gfn + slot.npages

    def copy(self) -> "Walks":
        other = Walks()
        other.entries, other.table = list(self.entries), list(self.table)
        other.used, other.last_used = self.used, self.last_used
        return other


def outcome(action: Callable[[], int]) -> int | Condition:
    try:
        return action()
    except ArrayError as warning:
        return warning.condition


ids = st.integers(0, IDS - 1)
gfns = st.integers(0, GFNS - 1)


class Machine(RuleBasedStateMachine):
    """Updates at random; few ids and gfns, so that slots meet often."""

    def __init__(self) -> None:
        super().__init__()
        self.array: MemslotArray[Slot] = MemslotArray()
        self.walks = Walks()
        self.slots: dict[int, Slot] = {}

    def compare(self, walked: Walks, got: int | Condition, expected: int) -> bool:
        """Whether a walk went without warning; a warning must be raised as the first one met."""
        assert got == (walked.warnings[0] if walked.warnings else expected)
        return not walked.warnings

    def apply(self, walked: Walks, slot: Slot, change: Change, start: int) -> None:
        """Walk forward from `start`, write, and see `update` do both or refuse."""
        got = outcome(lambda: self.array.move_forward(slot, start))
        index = walked.move_forward(slot, start)
        accepted = self.compare(walked, got, index)
        assert outcome(lambda: self.array.update(slot, change)) == got
        if accepted:
            walked.write(slot, index)
            self.walks = walked
            self.slots[slot.slot_id] = slot

    def fits(self, slot: Slot) -> Slot:
        """The slot, cut short where the next one begins: slots in use are disjoint."""
        others = [s for s in self.slots.values() if s.slot_id != slot.slot_id]
        above = [s.base_gfn for s in others if s.base_gfn > slot.base_gfn]
        npages = min([slot.npages] + [gfn - slot.base_gfn for gfn in above])
        return Slot(slot.slot_id, slot.base_gfn, npages, slot.flags)

    def inside_another(self, slot: Slot) -> bool:
        return any(
            other.base_gfn < slot.base_gfn < other.base_gfn + other.npages
            for other in self.slots.values()
            if other.slot_id != slot.slot_id
        )

    @rule(slot_id=ids, gfn=gfns, npages=st.integers(1, 4))
    def create(self, slot_id: int, gfn: int, npages: int) -> None:
        slot = self.fits(Slot(slot_id, gfn, npages))
        if slot_id in self.slots or self.inside_another(slot):
            return
        walked = self.walks.copy()
        start = walked.insert_back()
        assert self.array.insert_back() == start
        self.apply(walked, slot, Change.CREATE, start)

    @rule(slot_id=ids, gfn=gfns, npages=st.integers(1, 4))
    def move(self, slot_id: int, gfn: int, npages: int) -> None:
        slot = self.fits(Slot(slot_id, gfn, npages))
        if self.inside_another(slot):
            return
        walked = self.walks.copy()
        start = walked.move_backward(slot)
        got = outcome(lambda: self.array.move_backward(slot))
        if self.compare(walked, got, start):
            self.apply(walked, slot, Change.MOVE, start)
        else:
            assert outcome(lambda: self.array.update(slot, Change.MOVE)) == got

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def change_flags(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(list(self.slots.values())))
        slot = Slot(old.slot_id, old.base_gfn, old.npages, old.flags ^ 1)
        index = self.walks.table[slot.slot_id]
        assert self.array.update(slot, Change.FLAGS_ONLY) == index
        self.walks.write(slot, index)
        self.slots[slot.slot_id] = slot

    @rule(slot_id=ids)
    def delete(self, slot_id: int) -> None:
        walked = self.walks.copy()
        walked.delete(slot_id)
        got = outcome(lambda: self.array.update(Slot(slot_id, 0), Change.DELETE))
        if self.compare(walked, got, -1):
            self.walks = walked
            del self.slots[slot_id]

    @rule(gfn=st.integers(0, GFNS + 4))
    def search(self, gfn: int) -> None:
        by_dictionary = [s for s in self.slots.values() if gfn in pages(s)]
        found = self.array.find(gfn)
        if found is not None:
            self.array.hit(found)
        assert found == self.walks.search(gfn)
        assert found == (by_dictionary[0] if by_dictionary else None)

    @rule(gfn=gfns, npages=st.integers(1, 8), besides=st.none() | ids)
    def overlapping(self, gfn: int, npages: int, besides: int | None) -> None:
        wanted = range(gfn, gfn + npages)
        found = [
            s for s in self.slots.values() if s.slot_id != besides and set(pages(s)) & set(wanted)
        ]
        front_most = max(found, key=lambda s: s.base_gfn, default=None)
        assert self.array.overlapping(gfn, npages, besides) == front_most

    @invariant()
    def same_array(self) -> None:
        array, walks = self.array, self.walks
        assert array.used_slots == len(array) == walks.used == len(self.slots)
        assert list(array) == walks.entries[: walks.used]
        assert list(array) == sorted(self.slots.values(), key=lambda s: -s.base_gfn)
        assert [array.id_to_index(slot_id) for slot_id in range(IDS)] == walks.table
        assert [array.get(slot_id) for slot_id in range(IDS)] == [
            self.slots.get(slot_id) for slot_id in range(IDS)
        ]


def pages(slot: Slot) -> range:
    return range(slot.base_gfn, slot.base_gfn + slot.npages)


class SmallChunks(Machine):
    """The same with chunks so small that they split and join all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.array._order = array_module._SortedGfns(max_chunk=4)


QUICK = settings(derandomize=True, deadline=None, max_examples=40, stateful_step_count=30)
TestMachine = Machine.TestCase
TestMachine.settings = QUICK
TestSmallChunks = SmallChunks.TestCase
TestSmallChunks.settings = QUICK


def filled(*slots: Slot) -> MemslotArray[Slot]:
    array: MemslotArray[Slot] = MemslotArray()
    for slot in slots:
        array.update(slot, Change.CREATE)
    return array


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 2**52), min_size=1, max_size=40))
def test_search_at_every_border(bases: set[int]) -> None:
    ordered = sorted(bases)
    ends = [*ordered[1:], ordered[-1] + 9]
    sizes = [min(end - base, 5) for base, end in zip(ordered, ends, strict=True)]
    slots = [Slot(i, b, n) for i, (b, n) in enumerate(zip(ordered, sizes, strict=True))]
    array = filled(*slots)
    for slot in slots:
        first, end = slot.base_gfn, slot.base_gfn + slot.npages
        assert array.find(first) == array.find(end - 1) == slot
        for outside in (first - 1, end):
            owners = [s for s in slots if outside in pages(s)]
            assert array.find(outside) == (owners[0] if owners else None)


def test_a_large_array_keeps_its_order_while_its_chunks_split_and_join() -> None:
    by_id = {slot_id: Slot(slot_id, slot_id * 7919 % 10007) for slot_id in range(5000)}
    array = filled(*by_id.values())
    middle = {slot_id for slot_id, slot in by_id.items() if 1000 < slot.base_gfn < 6000}
    scattered = [{slot_id for slot_id in by_id if slot_id % keep} for keep in (3, 16, 400)]
    for gone in (set[int](), middle, *scattered):
        for slot_id in sorted(gone & by_id.keys()):
            array.delete(slot_id)
            del by_id[slot_id]
            assert array.id_to_index(next(iter(array)).slot_id) == 0
        in_order = sorted(by_id.values(), key=lambda s: -s.base_gfn)
        assert list(array) == in_order
        assert [array.id_to_index(s.slot_id) for s in in_order] == list(range(len(in_order)))
        below = [array.overlapping(0, s.base_gfn) for s in in_order if s.base_gfn]
        assert [s for s in below if s is not None] == in_order[1:]
    array.update(Slot(1200, 20000), Change.MOVE)
    assert (array.id_to_index(1200), array.find(20000)) == (0, Slot(1200, 20000))
    for slot_id in by_id:
        array.delete(slot_id)
    assert (array.used_slots, list(array), array.find(20000)) == (0, [], None)


def test_an_unused_id_warns_and_says_so() -> None:
    array = filled(Slot(1, 5))
    actions: list[Callable[[], object]] = [
        lambda: array.delete(2),
        lambda: array.move_backward(Slot(2, 9)),
        lambda: array.update(Slot(2, 9), Change.MOVE),
        lambda: array.update(Slot(2, 5), Change.FLAGS_ONLY),
        lambda: array.update(Slot(2, 5), Change.DELETE),
        lambda: MemslotArray[Slot]().move_backward(Slot(2, 9)),
    ]
    for action in actions:
        with pytest.raises(ArrayError, match="slot 2: the slot id is unused") as caught:
            action()
        assert (caught.value.condition, caught.value.slot_id) == (Condition.UNUSED_ID, 2)
    assert list(array) == [Slot(1, 5)]


@pytest.mark.parametrize(
    ("slot", "change"),
    [
        (Slot(3, 5), Change.CREATE),
        (Slot(2, 5), Change.MOVE),  # met on the way toward the back
        (Slot(1, 9), Change.MOVE),  # met on the way toward the front
    ],
)
def test_an_equal_gfn_warns_and_changes_nothing(slot: Slot, change: Change) -> None:
    array = filled(Slot(1, 5), Slot(2, 9))
    with pytest.raises(ArrayError, match="equal base_gfn") as caught:
        array.update(slot, change)
    assert caught.value.condition is Condition.EQUAL_GFN
    assert list(array) == [Slot(2, 9), Slot(1, 5)]
    assert array.get(3) is None


@pytest.mark.parametrize(
    ("slot", "change", "text"),
    [
        (Slot(1, 7), Change.CREATE, "in use"),
        (Slot(2, 7, npages=0), Change.CREATE, "has pages"),
        (Slot(1, 7, npages=0), Change.MOVE, "has pages"),
        (Slot(1, 7), Change.FLAGS_ONLY, "another base_gfn"),
    ],
)
def test_what_must_never_reach_the_array(slot: Slot, change: Change, text: str) -> None:
    array = filled(Slot(1, 5))
    with pytest.raises(ValueError, match=text):
        array.update(slot, change)
    assert list(array) == [Slot(1, 5)]
