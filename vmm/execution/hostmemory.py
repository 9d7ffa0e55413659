"""The host side of a scenario's memory: mapped, tagged, and watched for changes."""

import errno
import os
from collections.abc import Iterable, Iterator
from typing import assert_never

from kvm_abi.mman import Pager, Watched
from kvm_abi.uapi import Protection
from vmm.execution.forked import ForkedChild
from vmm.execution.samepages import wait_for_scans
from vmm.kvm.closing import Closing
from vmm.kvm.memory import GIANT_PAGE_BYTES, HostAddress, HostMapping
from vmm.scenario.content import page_bytes
from vmm.scenario.history import Done, HostChange, Inspected, Refused
from vmm.scenario.hostpages import HostPages
from vmm.scenario.operations import PAGE_SIZE_BYTES, ChangeHostMemory, Hva, Mapping, Place
from vmm.scenario.reached import Reached, runs_of

_Stretch = tuple[str, HostMapping, int, memoryview]
"""Adjacent pages of a mapping: its name, the mapping, their offset, and their last content."""

_ACCESS = {
    "forbid": Protection.NONE,
    "allow": Protection.READ | Protection.WRITE,
    "write_protect": Protection.READ,
}


class HostMemory(Closing):
    """All mappings that a scenario declares; they outlive every VM that uses them."""

    def __init__(self, mappings: tuple[Mapping, ...], reached: Reached | None = None) -> None:
        """Create the mappings; of one in ``reached`` only those pages are filled."""
        self._reached = reached or {}
        self._declared = {mapping.name: index for index, mapping in enumerate(mappings)}
        self._mappings: dict[str, HostMapping] = {}
        self._seen: dict[str, list[tuple[int, bytearray]]] = {}
        self._pages = HostPages(mappings, reached)
        self._watch: _Watch | None = None
        self._child: ForkedChild | None = None
        self._pagers: dict[str, Pager] = {}
        self._nothing = HostMapping.reserved(PAGE_SIZE_BYTES)
        try:
            for index, mapping in enumerate(mappings):
                memory = self._map(mapping, index)
                self._mappings[mapping.name] = memory
                pages = self._reached.get(mapping.name)
                if pages is not None and mapping.kind == "anonymous":
                    memory.spare_huge_pages()
                if mapping.kind not in ("unmapped", "guest_memfd"):
                    runs = [range(mapping.pages)] if pages is None else runs_of(pages)
                    of = self._declared.get(mapping.of, index)
                    tag = _tags if mapping.kind == "private_file" or mapping.of else _tag
                    self._seen[mapping.name] = [tag(memory, of, run) for run in runs]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmap everything. The VMs must be closed."""
        self.end_child()
        while self._pagers:
            self._pagers.popitem()[1].stop()
        self._nothing.close()
        for memory in self._mappings.values():
            memory.close()
        self._mappings.clear()

    @property
    def inaccessible(self) -> int:
        """An address that can be neither read nor written."""
        return self._nothing.address

    def address(self, hva: Hva) -> HostAddress | int:
        """Return an hva as `Vm` takes it."""
        if isinstance(hva, Place):
            return HostAddress(self._mappings[hva.mapping], hva.offset)
        return hva

    def memfd(self, name: str) -> int | None:
        """Return the file of a mapping of kind ``memfd``; None if it has none."""
        memory = self._mappings.get(name)
        return memory.fd if memory is not None and memory.fd >= 0 else None

    def show(self, name: str, fd: int, *, private: bool, writable: bool) -> None:
        """Map a file over a reserved mapping, and tag its pages if it is writable.

        Raises OSError.
        """
        memory = self._mappings[name]
        memory.cover(fd, private=private)
        if writable and name not in self._seen:
            pages = range(memory.size_bytes // PAGE_SIZE_BYTES)
            self._seen[name] = [_tag(memory, self._declared[name], pages)]
            self._watch = None

    def _map(self, mapping: Mapping, index: int) -> HostMapping:
        if mapping.of:
            file, size_bytes = self._mappings[mapping.of].fd, mapping.pages * PAGE_SIZE_BYTES
            if mapping.kind == "pfnmap":
                return HostMapping.pfnmap(file, size_bytes)
            return HostMapping.of_file(file, size_bytes, private=mapping.kind == "private_file")
        if mapping.kind == "private_file":
            return _private_file(index, mapping.pages)
        return _map(mapping)

    def write(self, place: Place, value: int) -> Done | Refused:
        """Write four bytes as the host; ``changes`` reports them like any other change.

        The outcome is EFAULT for a reserved mapping that shows nothing yet: a write would kill the
        process.
        """
        if place.mapping not in self._seen:
            return Refused(errno.EFAULT)
        self._mappings[place.mapping].write(place.offset, value.to_bytes(4, "little"))
        return Done()

    def change(self, op: ChangeHostMemory) -> Done | Inspected:
        """Change what pages of a mapping show, or how they may be accessed."""
        memory, size_bytes = self._mappings[op.place.mapping], op.pages * PAGE_SIZE_BYTES
        start = op.place.offset
        match op.how:
            case "drop":
                memory.discard(start, size_bytes)
            case "punch":
                memory.punch(start, size_bytes)
            case "unmap":
                memory.vacate(start, size_bytes)
            case "map":
                memory.refill(start, size_bytes)
            case "forbid" | "allow" | "write_protect":
                memory.protect(start, size_bytes, _ACCESS[op.how])
            case "map_fresh":
                memory.freshen(start, size_bytes)
            case "map_file":
                self._map_file(memory, op)
            case "truncate":
                memory.resize_file(start)
            case "extend":
                memory.resize_file(start + size_bytes)
            case "page_out":
                memory.page_out(start, size_bytes)
            case "collapse":
                memory.collapse(start, size_bytes)
            case "merge":
                memory.allow_merging(start, size_bytes)
                wait_for_scans()
            case "move_away":
                memory.move_away(start, size_bytes)
            case "move_back":
                memory.move_back(start, size_bytes)
            case "fetch_later" | "guard":
                pager = Pager(memory.address_of(start), size_bytes, guards=op.how == "guard")
                self._pagers[op.place.mapping] = pager
            case "settle":
                return self._settle(op)
            case "fork":
                self._child = ForkedChild(self._own_memory())
            case "reap":
                return self._reap()
            case _:
                assert_never(op.how)
        self._pages.change(op)
        self._watch = None
        return Done()

    def _map_file(self, memory: HostMapping, op: ChangeHostMemory) -> None:
        """Map pages of another mapping's file over pages of a mapping."""
        assert op.source is not None, "validated"
        file = self._mappings[op.source.mapping].fd
        memory.overlay(op.place.offset, op.pages * PAGE_SIZE_BYTES, file, op.source.offset)

    def _settle(self, op: ChangeHostMemory) -> Inspected:
        """End userfaultfd for pages; return those that changed without a fault being reported."""
        name, first = op.place.mapping, op.place.offset
        pages = self._pagers.pop(name).stop()
        memory = self._mappings[name]
        starts = [first + page * PAGE_SIZE_BYTES for page in pages]
        return Inspected(tuple(HostChange(name, at, memory.read(at, 4)) for at in starts))

    def end_child(self) -> None:
        """End the forked child, if there is one."""
        if self._child is not None:
            self._reap()

    def _reap(self) -> Inspected:
        child, self._child = self._child, None
        assert child is not None, "validated: somebody was forked"
        return Inspected(child.end())

    def _own_memory(self) -> Iterator[tuple[str, HostMapping, int]]:
        """Yield the readable pages that a forked child has to itself."""
        for name, memory in self._mappings.items():
            for page in self._pages.own_pages(name):
                if not self._pages.is_absent(name, page):
                    yield name, memory, page * PAGE_SIZE_BYTES

    def changes(self) -> tuple[HostChange, ...]:
        """Return the bytes that changed since the last call.

        Unreadable pages are skipped until they can be read.
        """
        if self._watch is None:
            self._watch = _Watch(self._readable())
        return self._watch.changes()

    def _readable(self) -> Iterator[_Stretch]:
        for name, memory in self._mappings.items():
            for first, seen in self._seen.get(name, ()):
                pages = range(first // PAGE_SIZE_BYTES, (first + len(seen)) // PAGE_SIZE_BYTES)
                absent = self._pages.absent(name, pages)
                for start, end in _stretches(first, first + len(seen), absent):
                    yield name, memory, start, memoryview(seen)[start - first : end - first]


class _Watch:
    """Compares readable memory with its content at the last look."""

    def __init__(self, stretches: Iterable[_Stretch]) -> None:
        self._places: list[tuple[str, int]] = []
        addressed = []
        for name, memory, start, seen in stretches:
            self._places.append((name, start))
            addressed.append((memory.address_of(start), seen))
        self._watched = Watched(addressed, PAGE_SIZE_BYTES)

    def changes(self) -> tuple[HostChange, ...]:
        places = self._places
        changes = []
        for number, offset, data in self._watched.news():
            name, start = places[number]
            changes.append(HostChange(name, start + offset, data))
        return tuple(changes)


def _stretches(start: int, end: int, absent: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield start and end, in bytes, of the stretches between absent pages, which ascend."""
    for page in absent:
        yield start, page * PAGE_SIZE_BYTES
        start = (page + 1) * PAGE_SIZE_BYTES
    yield start, end


def _map(mapping: Mapping) -> HostMapping:
    """Return a new mapping of zeros; not for kinds that need a file first."""
    size_bytes = mapping.pages * PAGE_SIZE_BYTES
    match mapping.kind:
        case "anonymous":
            return HostMapping.anonymous(size_bytes)
        case "shared":
            return HostMapping.shared(size_bytes)
        case "memfd":
            return HostMapping.memfd(size_bytes)
        case "hugetlb":
            return HostMapping.hugetlb(size_bytes)
        case "hugetlb_memfd":
            return HostMapping.memfd(size_bytes, huge=True)
        case "thp":
            return HostMapping.transparent_huge(size_bytes)
        case "zero":
            return HostMapping.at_zero(size_bytes)
        case "unmapped":
            return HostMapping.reserved(size_bytes, aligned_bytes=GIANT_PAGE_BYTES)
        case "guest_memfd":
            return HostMapping.reserved(size_bytes)
        case "private_file" | "pfnmap":
            raise AssertionError("its file is filled first")
        case _:
            assert_never(mapping.kind)


def _private_file(index: int, pages: int) -> HostMapping:
    """Return a private mapping of a new file whose pages hold their identities."""
    fd = os.memfd_create("memslot", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, pages * PAGE_SIZE_BYTES)
        for page in range(pages):
            os.pwrite(fd, page_bytes(index, page), page * PAGE_SIZE_BYTES)
        return HostMapping.of_file(fd, pages * PAGE_SIZE_BYTES, private=True)
    finally:
        os.close(fd)


def _tags(_memory: HostMapping, index: int, pages: range) -> tuple[int, bytearray]:
    """Return the offset and the content of pages that already hold their identities."""
    tags = bytearray().join([page_bytes(index, page) for page in pages])
    return pages.start * PAGE_SIZE_BYTES, tags


def _tag(memory: HostMapping, index: int, pages: range) -> tuple[int, bytearray]:
    """Write each page's identity into it; return the offset and what was written."""
    offset, tags = _tags(memory, index, pages)
    memory.write(offset, tags)
    return offset, tags
