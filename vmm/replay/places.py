"""Finds the host memory of a trace's slots, and room for a guest between the slots."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

import msgspec

from vmm.replay.ranges import joined
from vmm.replay.trace import OTHER_FILE, MemoryChange, Region, TracedVm, VmCall
from vmm.replay.vm_calls import SHOWN
from vmm.scenario.features import Features
from vmm.scenario.guestplace import TSS_BYTES, free_gpa
from vmm.scenario.limits import MAX_MAPPED_PAGES
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    CreateGuestMemfd,
    Guest,
    Hva,
    Mapping,
    MappingKind,
    Place,
    pages_of,
)
from vmm.scenario.slots import MAX_PAGES, USER_END, id_of

HUGE_BYTES = 512 * PAGE_SIZE_BYTES
_MOST_HUGE_PAGES = MAX_MAPPED_PAGES * 3 // 4 // 512
"""How many pages of hugetlbfs a scenario may have, and some other memory."""

OTHER_THAN_MEMFD = "a mapping of a guest_memfd is memory of another file here"
_MOST_UNUSED_PAGES = 4
_ELSEWHERE = "elsewhere"
"""A page for addresses where no slot has memory, such as those that deletions name."""

_GUEST_SLOTS = (*range(400, 509), *range(399, -1, -1), *range(509, 32764))


class _Range(msgspec.Struct, frozen=True):
    start: int
    end: int
    base: int
    mapping: Mapping


class Places:
    """Translates the host addresses of a trace to places in mappings of the scenario."""

    def __init__(self, vm: TracedVm, features: Features | None) -> None:
        free = _MOST_HUGE_PAGES if features is None else features.hugetlb_pages
        self._free_huge_pages = min(free, _MOST_HUGE_PAGES)
        self.notes: list[str] = []
        self._sizes = {
            each.operation.name: each.operation.size
            for each in vm.calls
            if isinstance(each, VmCall)
            and isinstance(each.operation, CreateGuestMemfd)
            and not each.errno
        }
        self._shown: dict[str, Mapping] = {}
        self._unused: list[Mapping] = []
        regions = [each for each in vm.calls if isinstance(each, Region)]
        ranges = joined([_memory(each) for each in regions])
        self._ranges = [
            self._declare(number, start, end, vm) for number, (start, end) in enumerate(ranges)
        ]
        self._starts = [each.start for each in self._ranges]
        self._needs_elsewhere = False
        is_other = any(each.memfd == OTHER_FILE for each in regions)
        self._other_file = (Mapping(OTHER_FILE, 1, "memfd"),) if is_other else ()

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """The mappings of the scenario."""
        named = tuple(each.mapping for each in self._ranges)
        elsewhere = (Mapping(_ELSEWHERE, 1, "unmapped"),) if self._needs_elsewhere else ()
        return (*named, *elsewhere, *self._other_file, *self._unused)

    def showing(self, memfd: str) -> str:
        """Return the mapping that shows a guest_memfd; if no slot uses it, a small one."""
        if memfd not in self._shown:
            pages = min(pages_of(self._sizes[memfd]), _MOST_UNUSED_PAGES)
            self._shown[memfd] = Mapping(f"{SHOWN}{len(self._unused)}", pages, "guest_memfd")
            self._unused.append(self._shown[memfd])
        return self._shown[memfd].name

    def shows(self, mapping: Mapping, change: MemoryChange) -> bool:
        """Whether a mapping shows what a change maps of a guest_memfd there."""
        begins = (each.base for each in self._ranges if each.mapping is mapping)
        is_same = any(base == change.base for base in begins)
        return is_same and self._shown.get(change.memfd) is mapping

    def hva(self, address: int, size: int) -> Hva:
        """Return the userspace address of a slot of some size as the scenario has it."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._ranges[index].end:
            found = self._ranges[index]
            return Place(found.mapping.name, address - found.base)
        if address >= USER_END or (address == 0 and not size):
            return address
        self._needs_elsewhere = True
        return Place(_ELSEWHERE, address % PAGE_SIZE_BYTES)

    def parts(self, start: int, size: int) -> Iterator[tuple[Mapping, int, int]]:
        """Yield (mapping, offset, size) for the part of a range of addresses in each mapping."""
        first = max(0, bisect_right(self._starts, start) - 1)
        for each in self._ranges[first:]:
            if each.start >= start + size:
                return
            begin, end = max(start, each.start), min(start + size, each.end)
            if begin < end:
                yield each.mapping, begin - each.base, end - begin

    def _declare(self, number: int, start: int, end: int, vm: TracedVm) -> _Range:
        base = self._base_of_memfd(start, end, vm)
        if base is not None:
            mapping = Mapping(f"m{number}", pages_of(end - base), "guest_memfd")
            (memfd,) = {each.memfd for each in vm.memory if each.start < end and start < each.end}
            self._shown[memfd] = mapping
            return _Range(start, end, base, mapping)
        kind = self._kind(_kind_of(vm, start, end), pages_of(end - start))
        is_huge = kind in ("hugetlb", "thp")
        base = start - start % HUGE_BYTES if is_huge else start
        pages = -(-(end - base) // PAGE_SIZE_BYTES)
        if kind == "hugetlb":
            pages = -(-pages // 512) * 512
        return _Range(start, end, base, Mapping(f"m{number}", pages, kind))

    def _base_of_memfd(self, start: int, end: int, vm: TracedVm) -> int | None:
        """Return where the guest_memfd begins that a range shows; None if it shows other memory."""
        there = [each for each in vm.memory if each.start < end and start < each.end]
        found = {(each.memfd, each.base) for each in there if each.memfd}
        if not found:
            return None
        is_whole = joined([(max(start, e.start), min(end, e.end)) for e in there]) == [(start, end)]
        ((memfd, base), *others) = sorted(found)
        is_one = not others and all(each.memfd for each in there)
        size = self._sizes.get(memfd, 0)
        if (
            is_whole
            and is_one
            and base <= start
            and end - base <= size
            and memfd not in self._shown
        ):
            return base
        self.notes.append(OTHER_THAN_MEMFD)
        return None

    def _kind(self, kind: MappingKind, pages: int) -> MappingKind:
        """Return the kind of memory to use: thp for hugetlb if that is too much of it here."""
        whole = -(-pages // 512)
        if kind != "hugetlb":
            return kind
        if whole <= self._free_huge_pages:
            self._free_huge_pages -= whole
            return kind
        self.notes.append(
            "huge pages of hugetlbfs are transparent ones here: too few are free "
            "(vm.nr_hugepages), or they are too many to be filled"
        )
        return "thp"


def _memory(call: Region) -> tuple[int, int]:
    """Return the page-aligned range of a slot's memory; an empty range if it has none."""
    start = call.userspace_addr & -PAGE_SIZE_BYTES
    end = call.userspace_addr + call.memory_size
    if not 0 < end <= USER_END or pages_of(call.memory_size) > MAX_PAGES:
        return 0, 0
    return start, -(-end // PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES if call.memory_size else start


def _kind_of(vm: TracedVm, start: int, end: int) -> MappingKind:
    """Return the kind that most of a range's memory had when slots first used it."""
    weights: dict[MappingKind, int] = {}
    for each in vm.memory:
        size = min(end, each.end) - max(start, each.start)
        if size > 0:
            weights[each.kind] = weights.get(each.kind, 0) + size
    if not weights:
        return "anonymous"
    kind = max(weights, key=lambda kind: weights[kind])
    return "anonymous" if kind == "thp" and end - start < HUGE_BYTES else kind


def guest_for(regions: Iterable[Region], kernel_gpas: Iterable[int]) -> Guest | None:
    """Return a gpa and a slot for the guest that no call of the trace uses; None if no room.

    ``kernel_gpas`` are those of internal slots: of the TSS, and of the identity map.
    """
    calls = list(regions)
    ids = {id_of(call.slot) for call in calls}
    slot = next((each for each in _GUEST_SLOTS if each not in ids), None)
    gpa = free_gpa(
        [
            *((call.guest_phys_addr, call.guest_phys_addr + call.memory_size) for call in calls),
            *((gpa, gpa + TSS_BYTES) for gpa in kernel_gpas),
        ]
    )
    return None if slot is None or gpa is None else Guest(slot, gpa)
