"""What the model knows of host memory: the tags, and every byte written since."""

from collections.abc import Container
from dataclasses import dataclass

from vmm.scenario.content import changed_runs, page_bytes
from vmm.scenario.history import HostChange
from vmm.scenario.operations import PAGE_SIZE_BYTES, Mapping

PageKey = tuple[str, int]


@dataclass(slots=True)
class _Before:
    """What a page held at the last look, and between which offsets it was written since."""

    data: bytes
    start: int
    end: int


class Contents:
    """The bytes of all declared mappings, and of guest_memfds by name.

    Pages that nobody wrote cost nothing.
    """

    def __init__(self, mappings: tuple[Mapping, ...]) -> None:
        self._order = {mapping.name: index for index, mapping in enumerate(mappings)}
        self._sizes = {mapping.name: mapping.pages for mapping in mappings}
        self._pages: dict[PageKey, bytearray] = {}
        self._before: dict[PageKey, _Before] = {}

    def read(self, mapping: str, offset: int, length: int) -> bytes:
        """Return ``length`` bytes; they may span pages."""
        page, at = divmod(offset, PAGE_SIZE_BYTES)
        data = bytes(self._page(mapping, page)[at : at + length])
        offset += len(data)
        length -= len(data)
        while length:
            take = min(length, PAGE_SIZE_BYTES)
            data += self._page(mapping, offset // PAGE_SIZE_BYTES)[:take]
            offset += take
            length -= take
        return data

    def write(self, mapping: str, offset: int, data: bytes) -> None:
        """Change bytes as the guest would; ``changes`` reports them."""
        left = memoryview(data)  # What is cut off of it is not copied.
        while left:
            page, at = divmod(offset, PAGE_SIZE_BYTES)
            take = min(len(left), PAGE_SIZE_BYTES - at)
            self._writable(mapping, page, at, at + take)[at : at + take] = left[:take]
            offset += take
            left = left[take:]

    def lose(self, mapping: str, pages: range) -> None:
        """Let the pages of a range read as zeros, as far as there are any."""
        if mapping in self._sizes:
            for page in pages[: max(0, self._sizes[mapping] - pages.start)]:
                self.write(mapping, page * PAGE_SIZE_BYTES, bytes(PAGE_SIZE_BYTES))
            return
        for key in [key for key in self._pages if key[0] == mapping and key[1] in pages]:
            del self._pages[key]

    def changes(self, hidden: Container[PageKey] = ()) -> tuple[HostChange, ...]:
        """Return what differs from what it was at the last ``forget_changes``.

        Pages that are hidden from the host are left out.
        """
        found: list[HostChange] = []
        for key in sorted(self._before, key=lambda key: (self._order[key[0]], key[1])):
            mapping, page = key
            if key in hidden:
                continue
            before = self._before[key]
            now = bytes(self._pages[key][before.start : before.end])
            offset = page * PAGE_SIZE_BYTES + before.start
            for at, data in changed_runs(before.data[before.start : before.end], now):
                found.append(HostChange(mapping, offset + at, data))
        return tuple(found)

    def forget_changes(self, hidden: Container[PageKey] = ()) -> None:
        """Begin anew, but for hidden pages: ``changes`` compares with what is there now."""
        self._before = {key: data for key, data in self._before.items() if key in hidden}

    def _page(self, mapping: str, page: int) -> bytes | bytearray:
        written = self._pages.get((mapping, page))
        return written if written is not None else self._fresh(mapping, page)

    def _fresh(self, mapping: str, page: int) -> bytes:
        """Return what a page holds at first: what no mapping shows begins as zeros."""
        order = self._order.get(mapping)
        return bytes(PAGE_SIZE_BYTES) if order is None else page_bytes(order, page)

    def _writable(self, mapping: str, page: int, start: int, end: int) -> bytearray:
        """Return a page that is to be written between two offsets."""
        key = (mapping, page)
        held = self._pages.get(key)
        if held is None:
            held = self._pages[key] = bytearray(self._fresh(mapping, page))
        before = self._before.get(key)
        if before is not None:
            before.start, before.end = min(before.start, start), max(before.end, end)
        elif mapping in self._order:
            self._before[key] = _Before(bytes(held), start, end)
        return held
