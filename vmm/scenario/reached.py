"""Which pages of large mappings a scenario may reach: only those are filled, and watched.

So a mapping as large as a real machine's memory costs only what is touched. The pages follow from
the scenario alone: every slot that it could create, under every access that it makes, surveys
included.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping as MappingOf
from itertools import chain

from vmm.scenario.instructions import accessed
from vmm.scenario.operations import (
    HUGE_KINDS,
    HUGE_PAGE_PAGES,
    MAX_GPA_BITS,
    PAGE_SIZE_BYTES,
    AnyOperation,
    Execute,
    GuestThread,
    HostThread,
    HostWrite,
    Instruction,
    Mapping,
    Place,
    PreFaultMemory,
    Race,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
    access_end,
    pages_of,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.slots import MAX_PAGES
from vmm.scenario.survey import Survey

SPARSE_PAGES = 1 << 14
"""A mapping with more pages than this is sparse: only its reached pages are filled."""

MAX_PRE_FAULTED_PAGES = 1 << 15
"""The most pages that one operation may pre-fault in a scenario that has a sparse mapping."""

_MOST_WORK = 1 << 22
"""The most pages that are looked up, counting repetitions."""

_DENSE_KINDS = ("unmapped", "guest_memfd", "zero", *HUGE_KINDS)

Reached = MappingOf[str, tuple[int, ...]]
"""The pages of each sparse mapping that are reached, ascending."""


def is_sparse(mapping: Mapping) -> bool:
    """Whether a mapping is filled only where it is reached."""
    return mapping.pages > SPARSE_PAGES and mapping.kind not in _DENSE_KINDS


def reached_pages(scenario: Scenario, touch_limit: int) -> Reached:
    """Return which pages of sparse mappings a scenario may reach; ``touch_limit`` as for plans.

    Raises ScenarioError if finding out takes too long.
    """
    sparse = {mapping.name for mapping in scenario.mappings if is_sparse(mapping)}
    if not sparse:
        return {}
    pages: dict[str, set[int]] = {name: set() for name in sparse}
    operations = list(_all_operations(scenario.operations))
    gfns = sorted(set(chain(_surveyed(scenario, touch_limit), *map(_gfns, operations))))
    regions = {
        (pages_of(op.guest_phys_addr), pages_of(op.memory_size), op.userspace_addr)
        for op in operations
        if isinstance(op, SetUserMemoryRegion) and pages_of(op.memory_size) <= MAX_PAGES
    }
    work = 0
    for base_gfn, npages, hva in regions:
        if isinstance(hva, Place) and hva.mapping in sparse:
            first, last = bisect_left(gfns, base_gfn), bisect_left(gfns, base_gfn + npages)
            work += last - first
            if work > _MOST_WORK:
                raise ScenarioError("$.operations: too many slots under too many accesses")
            shift = pages_of(hva.offset) - base_gfn
            pages[hva.mapping].update(gfn + shift for gfn in gfns[first:last])
    for op in operations:
        if isinstance(op, HostWrite) and op.place.mapping in sparse:
            start = op.place.offset
            pages[op.place.mapping].update((pages_of(start), pages_of(start + 3)))
    return {name: tuple(sorted(each)) for name, each in pages.items()}


def within(reached: tuple[int, ...], pages: range) -> tuple[int, ...]:
    """Return those of the ascending page numbers that lie in a range."""
    return reached[bisect_left(reached, pages.start) : bisect_left(reached, pages.stop)]


def filled_pages(mapping: Mapping, reached: Reached) -> int:
    """Return how many pages of a mapping are filled at most."""
    pages = reached.get(mapping.name)
    if pages is None:
        return mapping.pages
    if mapping.kind == "thp":
        return len({page // HUGE_PAGE_PAGES for page in pages}) * HUGE_PAGE_PAGES
    return len(pages)


def all_filled_pages(scenario: Scenario) -> int:
    """Return how many pages of all mappings are filled at most. Raises ScenarioError."""
    reached = reached_pages(scenario, 1 << MAX_GPA_BITS)
    return sum(
        filled_pages(mapping, reached)
        for mapping in scenario.mappings
        if mapping.kind not in ("unmapped", "guest_memfd")
    )


def runs_of(pages: Iterable[int]) -> Iterator[range]:
    """Yield ascending page numbers as ranges."""
    start = end = -1
    for page in pages:
        if page != end:
            if end > start:
                yield range(start, end)
            start = page
        end = page + 1
    if end > start:
        yield range(start, end)


def _all_operations(operations: Iterable[AnyOperation]) -> Iterator[AnyOperation]:
    for op in operations:
        yield op
        if isinstance(op, Race):
            threads: tuple[HostThread | GuestThread, ...] = (*op.hosts, *op.guests)
            for thread in threads:
                yield from thread.operations if isinstance(thread, HostThread) else thread.program


def _surveyed(scenario: Scenario, touch_limit: int) -> Iterator[int]:
    """Yield the gfns that a survey touches; an access across a border touches both sides."""
    for touch in Survey(scenario, touch_limit).round():
        yield from _gfns(touch)


def _gfns(op: AnyOperation) -> Iterable[int]:
    match op:
        case Touch() | Sweep() | Execute():
            return range(pages_of(op.gpa), pages_of(access_end(op) - 1) + 1)
        case Instruction():
            ranges = (
                range(pages_of(gpa), pages_of(gpa + length - 1) + 1) for gpa, length in accessed(op)
            )
            return chain.from_iterable(ranges)
        case PreFaultMemory():
            count = min(pages_of(op.size + PAGE_SIZE_BYTES - 1), MAX_PRE_FAULTED_PAGES)
            return range(pages_of(op.gpa), pages_of(op.gpa) + count)
        case _:
            return ()
