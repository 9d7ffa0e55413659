"""What each page of host memory shows, and how it may be accessed, after the host's changes.

This follows from a scenario's operations alone, so that executor, model and C programs share it.
"""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, assert_never

from vmm.scenario.operations import (
    FILE_KINDS,
    PAGE_SIZE_BYTES,
    ChangeHostMemory,
    HostChangeKind,
    Mapping,
    MappingKind,
    Place,
)
from vmm.scenario.reached import Reached, within

PageKey = tuple[str, int]
"""(mapping or file, page)."""

Access = Literal["nothing", "reading", "everything"]


class ChangeRow(NamedTuple):
    """One kind of change: the call, the ``kinds`` of mapping it works on, the access it leaves.

    An ``access`` of None leaves the access as it was. If it ``keeps`` content, pages show the same
    bytes afterwards.
    """

    call: str
    kinds: tuple[MappingKind, ...]
    access: Access | None = None
    keeps: bool = False

    @property
    def leaves_pages(self) -> bool:
        """Whether pages show the same bytes afterwards, and may be accessed as before."""
        return self.keeps and self.access is None


_FILES: tuple[MappingKind, ...] = ("shared", "memfd")
_NAMELESS: tuple[MappingKind, ...] = ("shared", "hugetlb_memfd")
"""Kinds whose file no other mapping shows."""

_MAPPABLE: tuple[MappingKind, ...] = ("anonymous", "memfd", "private_file", "pfnmap")
_ADVISABLE: tuple[MappingKind, ...] = ("anonymous", "private_file", *_FILES)
_PROTECTABLE: tuple[MappingKind, ...] = (*_ADVISABLE, "pfnmap")

CHANGES: dict[HostChangeKind, ChangeRow] = {
    "drop": ChangeRow("MADV_DONTNEED", ("thp", *_ADVISABLE)),
    "punch": ChangeRow("MADV_REMOVE", ("hugetlb_memfd", *_FILES)),
    "unmap": ChangeRow("munmap", _MAPPABLE, "nothing"),
    "map": ChangeRow("mmap", _MAPPABLE, "everything"),
    "forbid": ChangeRow("mprotect(PROT_NONE)", _PROTECTABLE, "nothing", keeps=True),
    "allow": ChangeRow("mprotect(PROT_READ|PROT_WRITE)", _PROTECTABLE, "everything", keeps=True),
    "write_protect": ChangeRow("mprotect(PROT_READ)", _PROTECTABLE, "reading", keeps=True),
    "map_fresh": ChangeRow("mmap(MAP_FIXED|MAP_ANONYMOUS)", _MAPPABLE, "everything"),
    "map_file": ChangeRow("mmap(MAP_FIXED) of a file", _MAPPABLE, "everything"),
    "truncate": ChangeRow("ftruncate", ("memfd", "private_file")),
    "page_out": ChangeRow("MADV_PAGEOUT", ("thp", *_ADVISABLE), keeps=True),
    "collapse": ChangeRow("MADV_COLLAPSE", ("thp",), keeps=True),
    "merge": ChangeRow("MADV_MERGEABLE", ("anonymous", "thp", "private_file"), keeps=True),
    "move_away": ChangeRow("mremap away", ("anonymous",), "nothing", keeps=True),
    "move_back": ChangeRow("mremap back", ("anonymous",), "everything", keeps=True),
    "fork": ChangeRow("fork", ("thp", *_ADVISABLE), keeps=True),
    "reap": ChangeRow("end of the forked child", ("thp", *_ADVISABLE), keeps=True),
    "fetch_later": ChangeRow("userfaultfd for missing pages", ("anonymous",), keeps=True),
    "guard": ChangeRow("userfaultfd for writes", ("anonymous",), keeps=True),
    "settle": ChangeRow("end of userfaultfd", ("anonymous",), keeps=True),
    "extend": ChangeRow("ftruncate to full size", ("memfd", "private_file")),
}
"""Every kind of change."""

EMPTIES: tuple[HostChangeKind, ...] = ("punch", "truncate", "extend")
"""The changes after which a file itself has lost content."""


class Shown(NamedTuple):
    """What a page shows: a page of a file, or memory of its own (``file`` is empty).

    Writes to a ``private`` page do not reach the file.
    """

    file: str = ""
    page: int = 0
    private: bool = True


_FRESH = Shown()


def file_of(mapping: Mapping) -> str:
    """Return the file that a mapping was created from, by its first mapping; empty for none."""
    return (mapping.of or mapping.name) if mapping.kind in FILE_KINDS else ""


def keeper_of(mapping: Mapping, mappings: Iterable[Mapping]) -> str:
    """Return the mapping that keeps the pages of a mapping's file; empty if none does."""
    file = mapping.of or mapping.name
    return next((m.name for m in mappings if m.kind == "pfnmap" and m.of == file), "")


class HostPages:
    """What every page shows after the changes so far.

    Only those pages of a mapping matter that ``reached`` has for it, if it has the mapping.
    """

    def __init__(self, mappings: tuple[Mapping, ...], reached: Reached | None = None) -> None:
        self._reached = reached or {}
        self._mappings = {mapping.name: mapping for mapping in mappings}
        self._files = {mapping.name: file_of(mapping) for mapping in mappings}
        self._usual: dict[str, tuple[str, bool]] = {
            mapping.name: (self._files[mapping.name], mapping.kind == "private_file")
            for mapping in mappings
            if mapping.of or mapping.kind == "private_file"
        }
        self._made_for: dict[str, list[Mapping]] = {}
        for mapping in mappings:
            file = mapping.name if mapping.kind in _NAMELESS else self._files[mapping.name]
            self._made_for.setdefault(file, []).append(mapping)
        self._shown: dict[PageKey, Shown] = {}
        self._mapped_over: dict[PageKey, set[PageKey]] = {}
        self._nothing: dict[str, set[int]] = {}
        self._reading: set[PageKey] = set()
        self._ends: dict[str, int] = {}
        self.are_plain = not self._usual
        """Whether every page shows its mapping's own memory, which no other page shows."""

    def shown(self, mapping: str, page: int) -> Shown | None:
        """Return what a page shows; None for its mapping's own memory."""
        shown = self._shown.get((mapping, page))
        if shown is not None or mapping not in self._usual:
            return shown
        file, private = self._usual[mapping]
        return Shown(file, page, private)

    def is_own(self, mapping: str) -> bool:
        """Whether a mapping was created from memory that is in no file."""
        return self._mappings[mapping].kind not in (*FILE_KINDS, *_NAMELESS)

    def own_pages(self, mapping: str) -> Iterable[int]:
        """Return the pages of a mapping that matter, and are in no file."""
        pages = self._reached.get(mapping, range(self._mappings[mapping].pages))
        if self._mappings[mapping].kind in ("unmapped", "guest_memfd"):
            return ()
        return [page for page in pages if self._is_private(mapping, page)]

    def can_be_copied(self, mapping: str) -> bool:
        """Whether every page of a mapping is readable, and in no file."""
        pages = range(self._mappings[mapping].pages)
        return len(tuple(self.own_pages(mapping))) == len(pages) and not self.absent(mapping, pages)

    def _is_private(self, mapping: str, page: int) -> bool:
        shown = self.shown(mapping, page)
        return self.is_own(mapping) if shown is None else not shown.file

    def viewers(self, file: str, page: int) -> Iterator[PageKey]:
        """Yield the pages of mappings that show a page of a file, private ones included."""
        for mapping in self._made_for.get(file, ()):
            if page < mapping.pages and (mapping.name, page) not in self._shown:
                yield mapping.name, page
        yield from self._mapped_over.get((file, page), ())

    @property
    def hide_any(self) -> bool:
        """Whether any page is absent."""
        return bool(self._ends) or any(self._nothing.values())

    def is_absent(self, mapping: str, page: int) -> bool:
        """Whether an access to a page would kill the process."""
        return page in self._nothing.get(mapping, ()) or (
            bool(self._ends) and self._is_cut(mapping, page)
        )

    def is_read_only(self, mapping: str, page: int) -> bool:
        """Whether the host may read a page, but not write it."""
        return bool(self._reading) and (mapping, page) in self._reading

    def access(self, mapping: str, page: int) -> Access:
        """Return how a page may be accessed."""
        if self.is_absent(mapping, page):
            return "nothing"
        return "reading" if self.is_read_only(mapping, page) else "everything"

    def __contains__(self, key: object) -> bool:
        """Whether a (mapping, page) is absent."""
        return isinstance(key, tuple) and self.is_absent(*key)

    def absent(self, mapping: str, pages: range) -> Iterable[int]:
        """Return the pages of a range that are absent, ascending."""
        if self._ends:
            return [page for page in pages if self.is_absent(mapping, page)]
        return sorted(page for page in self._nothing.get(mapping, ()) if page in pages)

    def pages_of(self, op: ChangeHostMemory) -> Iterable[int]:
        """Return the pages that a change affects, as far as they matter."""
        first = op.place.offset // PAGE_SIZE_BYTES
        pages = range(first, first + op.pages)
        reached = self._reached.get(op.place.mapping)
        return pages if reached is None else within(reached, pages)

    def cut_off(self, op: ChangeHostMemory) -> Iterator[PageKey]:
        """Yield the pages of a file that are zeros after ``truncate`` or ``extend``."""
        file = self._files[op.place.mapping]
        first = op.place.offset // PAGE_SIZE_BYTES
        full = first + op.pages
        end = self._ends.get(file, full)
        if op.how == "truncate":
            end = min(first, end)
        yield from ((file, page) for page in range(end, full))

    def change(self, op: ChangeHostMemory) -> None:
        """Apply a change."""
        name, access = op.place.mapping, CHANGES[op.how].access
        pages = self.pages_of(op)
        if access is not None:
            nothing = self._nothing.setdefault(name, set())
            (nothing.update if access == "nothing" else nothing.difference_update)(pages)
            if access == "reading" or self._reading:
                self._set_reading(name, pages, access)
        match op.how:
            case "map" | "unmap" if self._shown:
                self._show_again(name, pages, op.how)
            case "map_fresh":
                for page in pages:
                    self._set((name, page), _FRESH)
            case "map_file":
                self._show(name, pages, op.source)
            case "truncate":
                self._ends[self._files[name]] = op.place.offset // PAGE_SIZE_BYTES
            case "extend":
                self._ends.pop(self._files[name], None)
            case "map" | "unmap" | "drop" | "punch" | "forbid" | "allow" | "write_protect":
                pass
            case "page_out" | "collapse" | "merge" | "move_away" | "move_back" | "fork" | "reap":
                pass
            case "fetch_later" | "guard" | "settle":
                pass
            case _:
                assert_never(op.how)

    def _set_reading(self, name: str, pages: Iterable[int], access: Access) -> None:
        keys = ((name, page) for page in pages)
        if access == "reading":
            self._reading.update(keys)
        else:
            self._reading.difference_update(keys)

    def _show_again(self, name: str, pages: Iterable[int], how: HostChangeKind) -> None:
        """Show what a mapping was created from; a reserved page that is in no file is fresh."""
        for page in pages:
            if (name, page) in self._shown:
                is_reserved = how == "unmap" and self.is_own(name)
                self._set((name, page), _FRESH if is_reserved else None)

    def _show(self, name: str, pages: Iterable[int], source: Place | None) -> None:
        assert source is not None, "validated: map_file names what it maps"
        file, first = self._files[source.mapping], source.offset // PAGE_SIZE_BYTES
        for number, page in enumerate(pages):
            self._set((name, page), Shown(file, first + number, private=False))

    def _set(self, key: PageKey, shown: Shown | None) -> None:
        before = self._shown.pop(key, None)
        if before is not None and before.file:
            self._mapped_over[before.file, before.page].discard(key)
        if shown is not None:
            self._shown[key] = shown
            if shown.file:
                self._mapped_over.setdefault((shown.file, shown.page), set()).add(key)
        self.are_plain = not (self._usual or self._shown)

    def _is_cut(self, mapping: str, page: int) -> bool:
        shown = self._shown.get((mapping, page))
        if shown is None:
            file, at = self._files[mapping], page
        else:
            file, at = shown.file, shown.page
        return at >= self._ends.get(file, at + 1)
