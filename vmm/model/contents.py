"""The content of host memory in the model: the tags, and every byte written since."""

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from vmm.model.vague import Vague, blend, mask_of, spans
from vmm.scenario.clocks import LAYOUTS, ClockWrite, Room
from vmm.scenario.content import changed_runs, tagged_bytes
from vmm.scenario.history import HostChange
from vmm.scenario.hostpages import HostPages, PageKey as PageKey
from vmm.scenario.operations import PAGE_SIZE_BYTES, ChangeHostMemory, Mapping

_OWN = "\0"
"""Marks the own pages of a mapping that shows a file, or did; no mapping's name has this suffix."""

_LINE_BYTES = 1024
_LINES = PAGE_SIZE_BYTES // _LINE_BYTES
_ZEROS = bytes(_LINE_BYTES)
"""Pages are kept in lines: most writes are a few bytes, at the start or the end of a page."""

_LineKey = tuple[str, int]
"""(mapping, file, or mapping with _OWN; line)."""


class _Before(NamedTuple):
    """A line at the last look, and the range of offsets that may have changed since.

    The bytes in the mask ``vague`` were unknown.
    """

    held: bytes
    start: int
    end: int
    vague: int


class Contents:
    """The bytes of all declared mappings, and of guest_memfds by name.

    Unwritten memory costs nothing. ``host`` says what each page shows; `change` updates it, too.
    """

    def __init__(self, mappings: tuple[Mapping, ...], host: HostPages | None = None) -> None:
        self._host = host or HostPages(mappings)
        self._order = {mapping.name: index for index, mapping in enumerate(mappings)}
        self._sizes = {mapping.name: mapping.pages for mapping in mappings}
        self._lines: dict[_LineKey, bytes] = {}
        self._copied: set[PageKey] = set()
        self._before: dict[str, dict[int, _Before]] = {name: {} for name in self._order}
        self._vague = Vague()
        self._was_vague = False
        """Whether a line that may have changed since the last look had unknown bytes then."""
        self.is_blurred = False
        """Whether a guest has written unknown data."""

    def read(self, mapping: str, offset: int, length: int) -> bytes:
        """Return ``length`` bytes; they may span pages."""
        line, at = divmod(offset, _LINE_BYTES)
        if at + length <= _LINE_BYTES and self._host.are_plain:  # The common case.
            held = self._lines.get((mapping, line))
            if held is None:
                return self._fresh(mapping, offset, length)
            return held[at : at + length]
        last = (offset + length - 1) // _LINE_BYTES
        data = b"".join([self._line(mapping, each) for each in range(line, last + 1)])
        return data[at : at + length]

    def write(self, mapping: str, offset: int, data: bytes) -> None:
        """Change bytes; ``changes`` reports them."""
        line, at = divmod(offset, _LINE_BYTES)
        if at + len(data) <= _LINE_BYTES:
            self._write(mapping, line, at, data)
            return
        left = memoryview(data)  # Slices of it are not copied.
        while left:
            line, at = divmod(offset, _LINE_BYTES)
            take = min(len(left), _LINE_BYTES - at)
            self._write(mapping, line, at, bytes(left[:take]))
            offset += take
            left = left[take:]

    @property
    def is_plain(self) -> bool:
        """Whether every page shows its mapping's own memory, which no other page shows."""
        return self._host.are_plain

    def kernel_writes(self, write: ClockWrite, *, surely: bool) -> None:
        """Let KVM write a structure; if ``surely``, it is due at the next look."""
        if not self._vague.masks:
            # Any other write there since the last look may have been to the version.
            line = write.offset // _LINE_BYTES
            surely = surely and line not in self._before.get(write.mapping, ())
        for first, end in LAYOUTS[write.clock].written:
            for offset in _line_starts(write.offset + first, write.offset + end):
                line, at = divmod(offset, _LINE_BYTES)
                size = min(write.offset + end - offset, _LINE_BYTES - at)
                self._write(write.mapping, line, at, None, size)
        self._vague.written(write, surely=surely)

    def blur(self, mapping: str, offset: int, length: int, *, is_aside: bool = False) -> None:
        """Let a guest write unknown bytes; ``is_aside`` if what it does turns on none of them."""
        self.is_blurred |= not is_aside
        end = offset + length
        for start in _line_starts(offset, end):
            line, at = divmod(start, _LINE_BYTES)
            self._write(mapping, line, at, None, min(end - start, _LINE_BYTES - at))
            self._vague.doubt(mapping, line // _LINES)

    @property
    def knows_all(self) -> bool:
        """Whether every byte is known."""
        return not self._vague.masks

    def is_vague(self, mapping: str, offset: int, length: int) -> bool:
        """Whether some of these bytes are unknown: KVM may have written them."""
        return bool(self._vague.masks) and any(
            self._vague.of(self._kept(mapping, start // _LINE_BYTES))
            & mask_of(start % _LINE_BYTES, min(offset + length - start, _LINE_BYTES))
            for start in _line_starts(offset, offset + length)
        )

    def lose(self, mapping: str, pages: range) -> None:
        """Make the existing pages of a range read as zeros."""
        if mapping in self._sizes:
            for page in pages[: max(0, self._sizes[mapping] - pages.start)]:
                self.write(mapping, page * PAGE_SIZE_BYTES, bytes(PAGE_SIZE_BYTES))
            return
        for key in [key for key in self._lines if key[0] == mapping and key[1] // _LINES in pages]:
            del self._lines[key]
            self._vague.clear(key)

    def hide(self, mapping: str, page: int) -> None:
        """Note that the own memory of a page is gone, since the page shows a file."""
        self._clear(mapping, page)

    def change(self, op: ChangeHostMemory) -> None:
        """Apply a change of what pages show."""
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
                    self._let_go(mapping, page)
            case "forbid" | "allow" | "write_protect":
                pass
            case "page_out" | "collapse" | "merge" | "move_away" | "move_back" | "fork" | "reap":
                pass  # Pages keep their bytes, wherever the kernel holds them.
            case "fetch_later" | "guard" | "settle":
                pass  # Accesses wait, and then find the same bytes.
        host.change(op)

    def _leave(self, mapping: str, pages: Iterable[int]) -> None:
        """Drop the pages' own memory: they show their file again, or zeros."""
        for page in pages:
            shown = self._host.shown(mapping, page)
            self._will_change(mapping, page)
            if shown is not None and shown.private:
                self._let_go(mapping, page)
            elif shown is None and self._host.is_own(mapping):
                self._clear(mapping, page)

    def _empty(self, files: Iterable[PageKey], *, copies: bool = False) -> None:
        """Zero pages of files; with ``copies``, drop private copies of them, too."""
        for file, page in files:
            for viewer in self._host.viewers(file, page):
                self._will_change(*viewer)
                if copies:
                    self._let_go(*viewer)
            self._clear(file, page)

    def _let_go(self, mapping: str, page: int) -> None:
        """Forget a page's own memory, apart from its file."""
        self._copied.discard((mapping, page))
        for line in _lines_of(page):
            self._lines.pop((mapping + _OWN, line), None)
            self._vague.clear((mapping + _OWN, line))

    def _clear(self, store: str, page: int) -> None:
        for line in _lines_of(page):
            self._lines[store, line] = _ZEROS
            self._vague.clear((store, line))

    def changes(self, hidden: Container[PageKey] = ()) -> tuple[HostChange, ...]:
        """Return the bytes that changed since the last ``forget_changes``, in runs within a page.

        Pages in ``hidden`` are left out.
        """
        found: list[HostChange] = []
        is_vague = bool(self._vague.masks) or self._was_vague
        for mapping, before in self._before.items():
            stop = 0
            for line in sorted(before):
                if hidden and (mapping, line // _LINES) in hidden:
                    continue
                held, first, end, vague = before[line]
                now = self._line(mapping, line)[first:end]
                if is_vague:
                    vague |= self._vague.of(self._kept(mapping, line))
                    held = blend(held, first, now, vague)
                for at, data in changed_runs(held[first:end], now):
                    start = line * _LINE_BYTES + first + at
                    if start == stop and start % PAGE_SIZE_BYTES:
                        run = found.pop()
                        found.append(HostChange(mapping, run.offset, run.data + data))
                    else:
                        found.append(HostChange(mapping, start, data))
                    stop = start + len(data)
        return tuple(found)

    def room(self, hidden: Container[PageKey] = ()) -> tuple[Room, ...]:
        """Return the bytes that may or may not have changed, since KVM may have written them."""
        if not (self._vague.masks or self._was_vague):
            return ()
        return tuple(
            (mapping, line * _LINE_BYTES + start, end - start)
            for mapping, before in self._before.items()
            for line in sorted(before)
            if (mapping, line // _LINES) not in hidden
            for start, end in spans(before[line].vague | self._vague.of(self._kept(mapping, line)))
        )

    def due(self, hidden: Container[PageKey] = ()) -> tuple[ClockWrite, ...]:
        """Return the structures that KVM must have written since the last look."""
        return tuple(
            each
            for each in self._vague.due
            if (each.mapping, each.offset // PAGE_SIZE_BYTES) not in hidden
        )

    def forget_changes(self, hidden: Container[PageKey] = ()) -> None:
        """Let ``changes`` compare with the current content from now on, except hidden pages."""
        self._vague.looked_at()
        self._was_vague = self._was_vague and bool(hidden)
        for mapping, before in self._before.items():
            if before:
                self._before[mapping] = {
                    line: held
                    for line, held in (before.items() if hidden else ())
                    if (mapping, line // _LINES) in hidden
                }

    def _line(self, mapping: str, line: int) -> bytes:
        """Return what a mapping shows in a line."""
        if self._host.are_plain:
            return self._held(mapping, line)
        return self._held(*self._kept(mapping, line))

    def _held(self, store: str, line: int) -> bytes:
        return self._lines.get((store, line)) or self._fresh(store, line * _LINE_BYTES, _LINE_BYTES)

    def _fresh(self, store: str, offset: int, length: int) -> bytes:
        """Return the initial content of a line: tags, or zeros for a guest_memfd."""
        order = self._order.get(store)
        return bytes(length) if order is None else tagged_bytes(order, offset, length)

    def _kept(self, mapping: str, line: int) -> _LineKey:
        """Return the key under which a mapping's line is kept."""
        if self._host.are_plain:
            return mapping, line
        page, within = divmod(line, _LINES)
        shown = self._host.shown(mapping, page)
        if shown is None:
            return mapping, line
        if shown.private and (not shown.file or (mapping, page) in self._copied):
            return mapping + _OWN, line
        return shown.file, shown.page * _LINES + within

    def _write(self, mapping: str, line: int, at: int, data: bytes | None, size: int = 0) -> None:
        """Change a line as a mapping shows it; without ``data``, to unknown bytes."""
        end = at + (size if data is None else len(data))
        if self._host.are_plain:
            key = mapping, line
            held = self._held(mapping, line)
            self._note(mapping, line, held, at, end)
        else:
            self._copy_on_write(mapping, line // _LINES)
            key = self._kept(mapping, line)
            held = self._held(*key)
            for viewer in self._viewers(mapping, line, key):
                self._note(*viewer, held, at, end)
        if data is None:
            self._vague.add(key, mask_of(at, end - at))
            return
        self._lines[key] = held[:at] + data + held[end:]
        if self._vague.masks and self._vague.of(key) & mask_of(at, end - at):
            self._vague.settle(key, mask_of(at, end - at))
            self._vague.doubt(mapping, line // _LINES)

    def _copy_on_write(self, mapping: str, page: int) -> None:
        """Give a page that maps a file privately its own copy."""
        shown = self._host.shown(mapping, page)
        if shown is None or not (shown.private and shown.file) or (mapping, page) in self._copied:
            return
        for line in _lines_of(page):
            if self._vague.masks:
                self._vague.copy(self._kept(mapping, line), (mapping + _OWN, line))
            self._lines[mapping + _OWN, line] = self._line(mapping, line)
        self._copied.add((mapping, page))

    def _viewers(self, mapping: str, line: int, key: _LineKey) -> Iterator[_LineKey]:
        """Yield the lines of mappings that show a kept line."""
        yield mapping, line
        store, (page, within) = key[0], divmod(key[1], _LINES)
        for name, shown in self._host.viewers(store, page):
            viewer = name, shown * _LINES + within
            if viewer != (mapping, line) and self._kept(*viewer) == key:
                yield viewer

    def _will_change(self, mapping: str, page: int) -> None:
        """Save what a page of a mapping shows now, before it shows something else."""
        self._vague.doubt(mapping, page)
        if mapping in self._order:
            for line in _lines_of(page):
                self._note(mapping, line, self._line(mapping, line), 0, _LINE_BYTES)

    def _note(self, mapping: str, line: int, held: bytes, start: int, end: int) -> None:
        before = self._before.get(mapping)
        if before is None:
            return
        noted = before.get(line)
        if noted is None:
            vague = self._vague.of(self._kept(mapping, line)) if self._vague.masks else 0
            before[line] = _Before(held, start, end, vague)
            self._was_vague |= bool(vague)
        elif start < noted.start or end > noted.end:
            start, end = min(start, noted.start), max(end, noted.end)
            before[line] = _Before(noted.held, start, end, noted.vague)


def _line_starts(offset: int, end: int) -> tuple[int, ...]:
    """Return the start of a range of bytes, and the starts of all further lines in it."""
    return (offset, *range((offset // _LINE_BYTES + 1) * _LINE_BYTES, end, _LINE_BYTES))


def _lines_of(page: int) -> range:
    return range(page * _LINES, (page + 1) * _LINES)
