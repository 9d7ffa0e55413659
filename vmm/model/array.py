"""The memslot array of "KVM: Terminate memslot walks via used_slots" (Linux 5.7 to 5.16).

The kernel kept a VM's memslots in one array, sorted by base_gfn from the highest (the front,
index 0) to the lowest, with a table from slot id to index. It changed that array by walking
from entry to entry, shifting each one as it went. `MemslotArray` returns the same answers and
indexes, at a cost that hardly grows with the number of slots:

- base_gfns are distinct, so the order of the entries is the order of their base_gfns. Only
  those are kept sorted; an index is the number of higher base_gfns and is never stored.
- Bisection finds where a walk would end. So `insert_back`, `move_backward` and `move_forward`
  only return the index, and `update` makes the whole change when it writes the slot. No
  half-shifted state is visible, and a refused update changes nothing.
"""

import enum
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar, assert_never


class Entry(Protocol):
    """What the array needs to know about a memslot: its id, and the gfns it covers."""

    @property
    def slot_id(self) -> int: ...

    @property
    def base_gfn(self) -> int: ...

    @property
    def npages(self) -> int: ...


E = TypeVar("E", bound=Entry)


class Change(enum.Enum):
    """The kernel's `enum kvm_mr_change`."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS_ONLY = "flags_only"


class Condition(enum.Enum):
    """A condition that the kernel's array warns about (WARN_ON, WARN_ON_ONCE).

    The kernel's move_backward also warns when used_slots is 0. Every id is unused then, and
    that warning comes first, there as here.
    """

    UNUSED_ID = "the slot id is unused (id_to_index is -1)"
    EQUAL_GFN = "an entry with an equal base_gfn is met"


class ArrayError(Exception):
    """The kernel would WARN: `condition` says why, `slot_id` for which slot."""

    def __init__(self, condition: Condition, slot_id: int) -> None:
        super().__init__(f"slot {slot_id}: {condition.value}")
        self.condition = condition
        self.slot_id = slot_id


class MemslotArray(Generic[E]):
    """The memslots of one address space, each in an entry of the caller's type.

    An entry must not change its slot_id, base_gfn or npages while it is in the array. The caller
    must not let slots overlap, and can ask `overlapping`; the kernel, too, checks this before it
    touches the array.
    """

    __slots__ = ("_by_gfn", "_by_id", "_last_hit", "_order")

    def __init__(self) -> None:
        self._by_id: dict[int, E] = {}
        self._by_gfn: dict[int, E] = {}
        self._order = _SortedGfns()
        self._last_hit: E | None = None

    @property
    def used_slots(self) -> int:
        """The number of entries in use: those at the indexes 0 to used_slots - 1."""
        return len(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[E]:
        """Yield the entries in use from front to back: the highest base_gfn first."""
        return (self._by_gfn[gfn] for gfn in reversed(self._order))

    def get(self, slot_id: int) -> E | None:
        """Return the entry of a slot id, None if the id is unused (the kernel's id_to_memslot)."""
        return self._by_id.get(slot_id)

    def id_to_index(self, slot_id: int) -> int:
        """Return the index of a slot id's entry, -1 if the id is unused."""
        entry = self._by_id.get(slot_id)
        return -1 if entry is None else self._index(entry.base_gfn)

    def hit(self, entry: E) -> None:
        """Note that an entry in use was found; `find` tries it first."""
        self._last_hit = entry

    def find(self, gfn: int) -> E | None:
        """Return the entry whose slot contains `gfn`, None if no slot does (search_memslots)."""
        entry = self._last_hit
        if entry is not None and entry.base_gfn <= gfn < entry.base_gfn + entry.npages:
            return entry
        base_gfn = self._order.highest_up_to(gfn)
        if base_gfn is None:
            return None
        entry = self._by_gfn[base_gfn]
        if gfn >= base_gfn + entry.npages:
            return None
        return entry

    def overlapping(self, base_gfn: int, npages: int, besides: int | None = None) -> E | None:
        """Return the front-most entry that shares a gfn with [base_gfn, base_gfn + npages).

        The slot with the id `besides` is ignored: a slot that moves may overlap itself.
        """
        found = self._order.highest_up_to(base_gfn + npages - 1)
        if found is not None and self._by_gfn[found].slot_id == besides:
            found = self._order.highest_up_to(found - 1)
        if found is None:
            return None
        entry = self._by_gfn[found]
        return entry if found + entry.npages > base_gfn else None

    def update(self, entry: E, change: Change) -> int:
        """Change the array as the kernel's update_memslots does; return the id's new index.

        That index is -1 after DELETE, for which only the entry's slot_id matters. Raises
        ArrayError where the kernel would WARN, and ValueError for what must never reach the
        array: an entry without pages, CREATE of an id in use, FLAGS_ONLY with another base_gfn.
        """
        if change is Change.DELETE:
            self.delete(entry.slot_id)
            return -1
        if entry.npages <= 0:
            raise ValueError(f"slot {entry.slot_id}: an entry in use has pages: {entry.npages}")
        if change is Change.CREATE:
            if entry.slot_id in self._by_id:
                raise ValueError(f"slot {entry.slot_id}: CREATE of a slot id in use")
            index = self.move_forward(entry, self.insert_back())
        elif change is Change.MOVE:
            index = self.move_forward(entry, self.move_backward(entry))
        elif change is Change.FLAGS_ONLY:
            old = self._used(entry.slot_id)
            if entry.base_gfn != old.base_gfn:
                raise ValueError(f"slot {entry.slot_id}: FLAGS_ONLY with another base_gfn")
            index = self._index(entry.base_gfn)
        else:
            assert_never(change)
        self._write(entry)
        return index

    def delete(self, slot_id: int) -> None:
        """Delete a slot: the entries after it shift one to the front (kvm_memslot_delete).

        Raises ArrayError if the id is unused.
        """
        entry = self._used(slot_id)
        self._last_hit = None
        self._take_out(entry)

    def insert_back(self) -> int:
        """Return the index at which a new slot starts: after the last (kvm_memslot_insert_back)."""
        return self.used_slots

    def move_backward(self, entry: E) -> int:
        """Return the index that a used slot reaches toward the back, moving to `entry.base_gfn`.

        It passes every entry with a higher gfn than its new one (kvm_memslot_move_backward).
        Raises ArrayError if the id is unused or an equal base_gfn is met.
        """
        old = self._used(entry.slot_id)
        if entry.base_gfn >= old.base_gfn:
            return self._index(old.base_gfn)
        if entry.base_gfn in self._by_gfn:
            raise ArrayError(Condition.EQUAL_GFN, entry.slot_id)
        return self._index(entry.base_gfn) - 1  # Its own old entry is among the higher ones.

    def move_forward(self, entry: E, start: int) -> int:
        """Return the index that a slot reaches from `start` toward the front.

        It passes every entry with a lower gfn than its own (kvm_memslot_move_forward). Raises
        ArrayError if an equal base_gfn is met.
        """
        index = self._index(entry.base_gfn)
        if index >= start:
            return start
        if entry.base_gfn in self._by_gfn:
            raise ArrayError(Condition.EQUAL_GFN, entry.slot_id)
        return index

    def _index(self, base_gfn: int) -> int:
        """Return how many entries have a higher base_gfn."""
        return len(self._by_id) - self._order.count_up_to(base_gfn)

    def _used(self, slot_id: int) -> E:
        entry = self._by_id.get(slot_id)
        if entry is None:
            raise ArrayError(Condition.UNUSED_ID, slot_id)
        return entry

    def _write(self, entry: E) -> None:
        self._last_hit = None
        old = self._by_id.get(entry.slot_id)
        if old is None or old.base_gfn != entry.base_gfn:
            if old is not None:
                self._take_out(old)
            self._order.add(entry.base_gfn)
        self._by_gfn[entry.base_gfn] = entry
        self._by_id[entry.slot_id] = entry

    def _take_out(self, entry: E) -> None:
        self._order.remove(entry.base_gfn)
        del self._by_gfn[entry.base_gfn]
        del self._by_id[entry.slot_id]


class _SortedGfns:
    """Distinct gfns in ascending order, in chunks so short that inserting is cheap.

    A chunk holds the gfns from the fence before it up to the fence after it; `_fences[i]` is
    between the chunks i and i + 1. No chunk is empty unless it is the only one.
    """

    __slots__ = ("_chunks", "_fences", "_max_chunk", "_min_chunk", "_sizes")

    def __init__(self, max_chunk: int = 1024) -> None:
        self._max_chunk = max_chunk
        self._min_chunk = max_chunk // 4
        self._chunks: list[list[int]] = [[]]
        self._sizes = [0]
        self._fences: list[int] = []

    def __reversed__(self) -> Iterator[int]:
        return (gfn for chunk in reversed(self._chunks) for gfn in reversed(chunk))

    def count_up_to(self, gfn: int) -> int:
        """Return how many of the gfns are not higher than `gfn`."""
        at = bisect_right(self._fences, gfn)
        return sum(self._sizes[:at]) + bisect_right(self._chunks[at], gfn)

    def highest_up_to(self, gfn: int) -> int | None:
        """Return the highest of the gfns that are not higher than `gfn`, None if there is none."""
        at = bisect_right(self._fences, gfn)
        chunk = self._chunks[at]
        within = bisect_right(chunk, gfn)
        if within:
            return chunk[within - 1]
        return self._chunks[at - 1][-1] if at else None

    def add(self, gfn: int) -> None:
        at = bisect_right(self._fences, gfn)
        insort(self._chunks[at], gfn)
        self._sizes[at] += 1
        if self._sizes[at] > self._max_chunk:
            self._split(at)

    def remove(self, gfn: int) -> None:
        at = bisect_right(self._fences, gfn)
        chunk = self._chunks[at]
        del chunk[bisect_left(chunk, gfn)]
        self._sizes[at] -= 1
        if self._sizes[at] < self._min_chunk and self._fences:
            self._join(min(at, len(self._fences) - 1))

    def _split(self, at: int) -> None:
        chunk = self._chunks[at]
        half = len(chunk) // 2
        self._chunks[at : at + 1] = chunk[:half], chunk[half:]
        self._sizes[at : at + 1] = half, len(chunk) - half
        self._fences.insert(at, chunk[half])

    def _join(self, at: int) -> None:
        self._chunks[at] += self._chunks.pop(at + 1)
        self._sizes[at] += self._sizes.pop(at + 1)
        del self._fences[at]
        if self._sizes[at] > self._max_chunk:
            self._split(at)
