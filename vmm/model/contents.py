"""What the model knows of host memory: the tags, and every byte written since."""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from vmm.scenario.content import changed_runs, page_bytes
from vmm.scenario.history import HostChange
from vmm.scenario.hostpages import HostPages, PageKey as PageKey
from vmm.scenario.operations import PAGE_SIZE_BYTES, ChangeHostMemory, Mapping

_OWN = "\0"
"""Ends the name of what a mapping holds itself where it shows a file, or did: no name has it."""


@dataclass(slots=True)
class _Before:
    """What a page held at the last look, and between which offsets it was written since."""

    data: bytes
    start: int
    end: int


class Contents:
    """The bytes of all declared mappings, and of guest_memfds by name.

    Pages that nobody wrote cost nothing. ``host`` says what each page shows: `change` brings
    both on.
    """

    def __init__(self, mappings: tuple[Mapping, ...], host: HostPages | None = None) -> None:
        self._host = host or HostPages(mappings)
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

    def change(self, op: ChangeHostMemory) -> None:
        """Let the host change what pages show, which may be something else then."""
        host, mapping = self._host, op.place.mapping
        pages = tuple(host.pages_of(op))
        match op.how:
            case "punch":
                places = (host.shown(mapping, page) for page in pages)
                files = [
                    (mapping, page) if shown is None else (shown.file, shown.page)
                    for page, shown in zip(pages, places, strict=True)
                ]
                self._empty(files)
            case "truncate" | "extend":
                self._empty(host.cut_off(op), copies=op.how == "truncate")
            case "drop" | "unmap":
                self._leave(mapping, pages)
            case "map" | "map_fresh" | "map_file":
                self._leave(mapping, pages)
                for page in pages:
                    self._pages.pop((mapping + _OWN, page), None)
            case "forbid" | "allow" | "write_protect":
                pass
            case "page_out" | "collapse" | "merge" | "move_away" | "move_back" | "fork" | "reap":
                pass  # The same bytes, in other pages or elsewhere.
        host.change(op)

    def _leave(self, mapping: str, pages: Iterable[int]) -> None:
        """Let go what pages hold themselves: they show their file again, or zeros."""
        for page in pages:
            shown = self._host.shown(mapping, page)
            self._will_change(mapping, page, 0, PAGE_SIZE_BYTES)
            if shown is not None and shown.private:
                self._pages.pop((mapping + _OWN, page), None)
            elif shown is None and self._host.is_own(mapping):
                self._pages[mapping, page] = bytearray(PAGE_SIZE_BYTES)

    def _empty(self, files: Iterable[PageKey], *, copies: bool = False) -> None:
        """Let pages of files be zeros; with ``copies``, private ones of them go, too."""
        for file, page in files:
            for viewer in self._host.viewers(file, page):
                self._will_change(*viewer, 0, PAGE_SIZE_BYTES)
                if copies:
                    self._pages.pop((viewer[0] + _OWN, viewer[1]), None)
            self._pages[file, page] = bytearray(PAGE_SIZE_BYTES)

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
            now = bytes(self._page(mapping, page)[before.start : before.end])
            offset = page * PAGE_SIZE_BYTES + before.start
            for at, data in changed_runs(before.data[before.start : before.end], now):
                found.append(HostChange(mapping, offset + at, data))
        return tuple(found)

    def forget_changes(self, hidden: Container[PageKey] = ()) -> None:
        """Begin anew, but for hidden pages: ``changes`` compares with what is there now."""
        self._before = {key: data for key, data in self._before.items() if key in hidden}

    def _page(self, mapping: str, page: int) -> bytes | bytearray:
        return self._held(self._store(mapping, page))

    def _held(self, store: PageKey) -> bytes | bytearray:
        written = self._pages.get(store)
        return written if written is not None else self._fresh(*store)

    def _fresh(self, mapping: str, page: int) -> bytes:
        """Return what a page holds at first: what no mapping shows begins as zeros."""
        order = self._order.get(mapping)
        return bytes(PAGE_SIZE_BYTES) if order is None else page_bytes(order, page)

    def _store(self, mapping: str, page: int) -> PageKey:
        """Return where what a page shows is kept."""
        if self._host.are_plain:
            return mapping, page
        shown = self._host.shown(mapping, page)
        if shown is None:
            return mapping, page
        own = mapping + _OWN, page
        if shown.private and (not shown.file or own in self._pages):
            return own
        return shown.file, shown.page

    def _writable(self, mapping: str, page: int, start: int, end: int) -> bytearray:
        """Return a page that is to be written between two offsets."""
        store = self._store(mapping, page)
        shown = None if self._host.are_plain else self._host.shown(mapping, page)
        if shown is not None and shown.private and shown.file and store[0] == shown.file:
            self._will_change(mapping, page, start, end)
            own = mapping + _OWN, page
            self._pages[own] = bytearray(self._held(store))
            return self._pages[own]
        held = self._pages.get(store)
        if held is None:
            held = self._pages[store] = bytearray(self._fresh(*store))
        if self._host.are_plain or (shown is not None and shown.private):
            self._will_change(mapping, page, start, end)
            return held
        for viewer in (*self._host.viewers(*store), (mapping, page)):
            if self._store(*viewer) == store:
                self._will_change(*viewer, start, end)
        return held

    def _will_change(self, mapping: str, page: int, start: int, end: int) -> None:
        """Note what a page of a mapping shows now, before it shows something else."""
        key = mapping, page
        before = self._before.get(key)
        if before is not None:
            before.start, before.end = min(before.start, start), max(before.end, end)
        elif mapping in self._order:
            self._before[key] = _Before(bytes(self._page(mapping, page)), start, end)
