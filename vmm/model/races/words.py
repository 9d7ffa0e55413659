"""The values that a word of host memory may hold while several threads write it."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from vmm.model.contents import Contents, PageKey
from vmm.scenario.operations import PAGE_SIZE_BYTES

WORD_BYTES = 4

NEVER = -1

Stores = Callable[[str, int, tuple[int, int]], Sequence[PageKey]]


@dataclass(slots=True)
class _Writes:
    """One thread's writes to one place, in order. An uncertain write may have gone elsewhere."""

    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    certain: list[bool] = field(default_factory=list)

    def newest_before(self, moment: int) -> int:
        """Return the begin of the last certain write that ended before a moment, or NEVER."""
        for index in range(bisect_left(self.ends, moment) - 1, -1, -1):
            if self.certain[index]:
                return self.begins[index]
        return NEVER

    def values_between(self, floor: int, end: int) -> Iterator[int]:
        """Yield the values of writes that ended after ``floor`` and began before ``end``."""
        for index in range(bisect_left(self.begins, end) - 1, -1, -1):
            if self.ends[index] <= floor:
                return
            yield self.values[index]


class MemoryWords:
    """All words that a race writes, by guests, by the host, and by zeroing whole pages.

    Mappings that show the same memory share its words: ``stores`` says which pages, each of the
    mapping that holds it, a page of a mapping may have shown in an interval.
    """

    def __init__(self, contents: Contents, stores: Stores) -> None:
        self._contents = contents
        self._stores = stores
        self._words: dict[tuple[str, int], dict[str, _Writes]] = defaultdict(dict)
        self._pages: dict[PageKey, dict[str, _Writes]] = defaultdict(dict)
        self._kept: dict[PageKey, bytes] = {}

    def write(
        self,
        who: str,
        mapping: str,
        offset: int,
        interval: tuple[int, int],
        value: int,
        certain: bool = True,
    ) -> None:
        """Note a write of four bytes. The writes of each thread come in order."""
        page, at = divmod(offset, PAGE_SIZE_BYTES)
        stores = self._stores(mapping, page, interval)
        certain = certain and len(stores) == 1
        for holder, held in stores:
            place = holder, held * PAGE_SIZE_BYTES + at
            _note(self._words[place], who, interval, value, certain)

    def clear_page(self, who: str, mapping: str, page: int, interval: tuple[int, int]) -> None:
        """Note that a page, by the mapping that holds it, was replaced by zeros."""
        _note(self._pages[mapping, page], who, interval, 0, True)

    def pages(self) -> set[PageKey]:
        """Return the pages that may have been written, by the mapping that holds them."""
        words = {(mapping, offset // PAGE_SIZE_BYTES) for mapping, offset in self._words}
        return words | self._pages.keys()

    def words_of(self, page: PageKey) -> Iterator[int]:
        """Yield the offsets of the words of a page that may have been written."""
        for mapping, offset in self._words:
            if (mapping, offset // PAGE_SIZE_BYTES) == page:
                yield offset

    def is_cleared(self, page: PageKey) -> bool:
        """Whether a page was replaced by zeros at some point."""
        return page in self._pages

    def values(self, mapping: str, offset: int, begin: int, end: int) -> list[int]:
        """Return what a read from ``begin`` to ``end`` may find in a word."""
        page, at = divmod(offset, PAGE_SIZE_BYTES)
        stores = self._stores(mapping, page, (begin, end))
        if len(stores) == 1:
            return self._held(stores[0], at, begin, end)
        found = [value for store in stores for value in self._held(store, at, begin, end)]
        return list(dict.fromkeys(found))

    def _held(self, store: PageKey, at: int, begin: int, end: int) -> list[int]:
        """Return what a word of the page that holds it may have been."""
        offset = store[1] * PAGE_SIZE_BYTES + at
        writers = [
            *self._words.get((store[0], offset), {}).values(),
            *self._pages.get(store, {}).values(),
        ]
        floor = max((writes.newest_before(begin) for writes in writers), default=NEVER)
        found = [value for writes in writers for value in writes.values_between(floor, end)]
        if floor == NEVER:
            found.append(self._first(store[0], offset))
        return list(dict.fromkeys(found))

    def keep(self, mapping: str, page: int) -> None:
        """Keep what a page held when the race began, before it shows something else."""
        if (mapping, page) not in self._kept:
            first = page * PAGE_SIZE_BYTES
            self._kept[mapping, page] = self._contents.read(mapping, first, PAGE_SIZE_BYTES)

    def kept(self, mapping: str, page: int) -> bytes | None:
        """Return what a page held when the race began, if it was kept."""
        return self._kept.get((mapping, page))

    def _first(self, mapping: str, offset: int) -> int:
        page, at = divmod(offset, PAGE_SIZE_BYTES)
        kept = self._kept.get((mapping, page))
        if kept is None:
            held = self._contents.read(mapping, offset, WORD_BYTES)
        else:
            held = kept[at : at + WORD_BYTES]
        return int.from_bytes(held, "little")


def _note(
    writers: dict[str, _Writes], who: str, interval: tuple[int, int], value: int, certain: bool
) -> None:
    writes = writers.setdefault(who, _Writes())
    writes.begins.append(interval[0])
    writes.ends.append(interval[1])
    writes.values.append(value)
    writes.certain.append(certain)
