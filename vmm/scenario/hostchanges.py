"""Checks of what the host does to a mapping, given its earlier changes to all mappings."""

from vmm.scenario.hostpages import CHANGES
from vmm.scenario.mappings import place_problem
from vmm.scenario.operations import (
    FILE_KINDS,
    HUGE_KINDS,
    HUGE_PAGE_PAGES,
    PAGE_SIZE_BYTES,
    ChangeHostMemory,
    Mapping,
    pages_of,
)
from vmm.scenario.races import host_change_problem
from vmm.scenario.reached import SPARSE_PAGES, is_sparse

_ITS_FILE, _VACATED, _HIDDEN = range(3)
"""What a page of a mapping of a file shows."""


class HostChanges:
    """Checks one change of host memory at a time.

    ``taken`` names the mappings that lose pages, so that the host must not write to them; ``hides``
    says whether any mapping shows a copy of a file, or memory other than it was created with.
    """

    def __init__(self, mappings: tuple[Mapping, ...]) -> None:
        self._mappings = {mapping.name: mapping for mapping in mappings}
        self.taken: set[str] = set()
        self.hides = any(m.kind == "private_file" for m in mappings)
        self._vacated: dict[str, bytearray] = {}
        self._cut: set[str] = set()
        self._immovable: set[str] = set()
        self._away: dict[str, bytearray] = {}
        self._is_forked = False
        self._paged: dict[str, tuple[int, int]] = {}
        self._views = {m.name: {m.name} for m in mappings}
        for mapping in mappings:
            self._views[mapping.of or mapping.name].add(mapping.name)

    @property
    def is_paged(self) -> bool:
        """Whether userfaultfd handles any page."""
        return bool(self._paged)

    def new_vm(self) -> None:
        """Note the end of a VM, which is also that of a forked child."""
        self._is_forked = False

    def problem(self, op: ChangeHostMemory) -> str:
        """Return what is wrong with the next change, beginning with the field; empty if nothing."""
        problem = place_problem(op.place, op.pages * PAGE_SIZE_BYTES, ".place", self._mappings)
        problem = problem or host_change_problem(op, self._mappings)
        problem = problem or self._odd_change_problem(op)
        if problem:
            return problem
        problem = self._elsewhere_problem(op)
        if op.how in ("unmap", "forbid", "write_protect", "move_away"):
            self.taken.add(op.place.mapping)
        if op.how in ("unmap", "forbid", "write_protect", "map_file"):
            self._immovable.add(op.place.mapping)
        return problem or self._mapped_problem(op)

    def _elsewhere_problem(self, op: ChangeHostMemory) -> str:
        """Check that moved pages are moved back first, and that fork and reap alternate."""
        problem = self._paging_problem(op)
        if problem:
            return problem
        if op.how in ("fork", "reap"):
            if self._is_forked is (op.how == "fork"):
                return ".how: 'fork' and 'reap' take turns"
            self._is_forked = op.how == "fork"
            return ""
        name = op.place.mapping
        if op.how == "move_away" and name in self._immovable:
            return f".how: an operation takes pages of {name!r} away in another way"
        if op.how == "move_away":
            self._away.setdefault(name, bytearray(self._mappings[name].pages))
        away = self._away.get(name)
        if away is None:
            return "" if op.how != "move_back" else ".how: nothing was moved away"
        first = op.place.offset // PAGE_SIZE_BYTES
        pages = slice(first, first + op.pages)
        if away.count(op.how == "move_back", first, pages.stop) != op.pages:
            return ".how: pages that were moved away are moved back first, and no others"
        if op.how in ("move_away", "move_back"):
            away[pages] = bytes((op.how == "move_away",)) * op.pages
        return ""

    def _paging_problem(self, op: ChangeHostMemory) -> str:
        """Check that pages under userfaultfd are settled before anything else happens to them."""
        name, pages = op.place.mapping, (op.place.offset, op.pages)
        if op.how == "settle":
            if self._paged.pop(name, None) != pages:
                return ".how: 'settle' takes the pages of a 'fetch_later' or 'guard' that stands"
        elif name in self._paged or (op.how == "fork" and self._paged):
            return f".how: {op.how!r} has to wait for 'settle'"
        elif op.how in ("fetch_later", "guard"):
            is_away = any(self._away.get(name, ()))
            if self._is_forked or name in self._immovable or is_away:
                return f".how: an operation takes pages of {name!r} away, or shares them"
            if not op.pages:
                return ".pages: one is needed"
            self._paged[name] = pages
        return ""

    def _odd_change_problem(self, op: ChangeHostMemory) -> str:
        """Check a change that shows other memory, or cuts the mapping's file."""
        name = op.place.mapping
        if (op.source is not None) is not (op.how == "map_file"):
            return ".source: what 'map_file' maps, and nothing else, has one"
        if op.how in ("drop", "punch", "unmap", "map", "forbid", "allow"):
            return ""
        mapping = self._mappings[name]
        self.hides |= not CHANGES[op.how].keeps and op.how not in ("truncate", "extend")
        if is_sparse(mapping):
            return f".how: {op.how!r} takes a mapping of at most {SPARSE_PAGES} pages"
        if op.source is not None:
            source = op.source.mapping
            problem = place_problem(
                op.source, op.pages * PAGE_SIZE_BYTES, ".source", self._mappings
            )
            if problem:
                return problem
            file = self._mappings[source]
            if file.kind != "memfd" or file.of or is_sparse(file):
                return f".source: {source!r} is no memfd of its own of at most {SPARSE_PAGES} pages"
            if op.source.offset % PAGE_SIZE_BYTES:
                return ".source: a whole page is needed"
            self._views[source].add(name)
            self.taken.update(self._views[source] if source in self._cut else ())
        if op.how in ("truncate", "extend"):
            if mapping.of:
                return f".place: the file is that of {mapping.of!r}"
            if pages_of(op.place.offset) + op.pages != mapping.pages:
                return ".pages: the last pages are needed, all of them"
        if op.how == "truncate":
            self._cut.add(name)
            self.taken |= self._views[name]
        return ""

    def _mapped_problem(self, op: ChangeHostMemory) -> str:
        """Check that an unmapped or hidden page of a file is mapped before it is used."""
        mapping = self._mappings[op.place.mapping]
        if mapping.kind in HUGE_KINDS and (pages_of(op.place.offset) | op.pages) % HUGE_PAGE_PAGES:
            return f".pages: {mapping.kind} memory comes and goes in {HUGE_PAGE_PAGES} pages"
        if mapping.kind not in FILE_KINDS:
            return ""
        shown = self._vacated.setdefault(mapping.name, bytearray(mapping.pages))
        first = op.place.offset // PAGE_SIZE_BYTES
        pages = slice(first, first + op.pages)
        marks = {"unmap": _VACATED, "map": _ITS_FILE, "map_fresh": _HIDDEN, "map_file": _HIDDEN}
        if op.how in marks:
            shown[pages] = bytes((marks[op.how],)) * op.pages
        elif op.how in ("allow", "write_protect") and shown.find(_VACATED, first, pages.stop) >= 0:
            return f".how: {op.how!r} takes pages that are mapped: 'map' those that were unmapped"
        elif op.how == "punch" and shown.count(_ITS_FILE, first, pages.stop) != op.pages:
            return ".how: 'punch' takes pages of the mapping's own file: 'map' them first"
        return ""
