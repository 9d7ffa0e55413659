"""Where the guest touches memory after each region operation, and how.

A survey depends on the scenario, and on how far guests reach on this kernel, and on nothing else.
"""

from collections.abc import Iterable, Iterator

from vmm.scenario.operations import (
    GUEST_SIZE_BYTES,
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    WINDOW_STEP_BYTES,
    AnyOperation,
    Inspect,
    Scenario,
    SetUserMemoryRegion,
    Touch,
    address_spaces,
    guest_count,
)
from vmm.scenario.slots import MAX_PAGES

MAX_SURVEY_PAGES = 128
"""A survey of more pages visits only the ends of each region and some borders inside: those of huge
pages, and where a word of its dirty log ends."""

MAX_SURVEY_WINDOWS = 64
"""The most stretches of 2 MiB at 4 GiB and above that a survey visits: those named first."""

_HUGE_PAGE_BYTES = 512 * PAGE_SIZE_BYTES
_GIGABYTE = 1 << 30
_WORD_BYTES = 64 * PAGE_SIZE_BYTES
_MAX_WORDS = 64
"""Larger regions are visited at no borders of words."""

_MAX_BORDERS = 64
"""The most 2 MiB borders inside a region that are visited, spread from one end to the other."""

_MAX_GIGABYTES = 64
_READ_OFFSET = 0x40  # No border write lands here, so that the identity stays intact.
_WRITE_OFFSET = 0x20
_VALUE_STEP = 0x9E3779B1


class Survey:
    """The touches of one survey round, and a fresh value for every write."""

    def __init__(self, scenario: Scenario, touch_limit: int) -> None:
        self._mode = scenario.survey
        self._vcpus = scenario.vcpus
        self._spaces = address_spaces(scenario)
        self._values = 0
        self._pages: list[int] = []
        self._borders: list[int] = []
        if self._mode != "none":
            regions = list(dict.fromkeys(_regions(scenario.operations, touch_limit)))
            guest = range(
                scenario.guest.gpa - (guest_count(scenario) - 1) * GUEST_SIZE_BYTES,
                scenario.guest.gpa + GUEST_SIZE_BYTES,
            )
            self._pages = [
                page
                for page in _within_windows(_pages_around(regions))
                if 0 <= page < touch_limit and page not in guest
            ]
            self._borders = _borders_of(regions, set(self._pages))

    @property
    def pages(self) -> int:
        """How many pages a round visits."""
        return len(self._pages)

    @property
    def touches(self) -> int:
        """How many touches a round makes at most."""
        places = len(self._pages) + len(self._borders)
        writes = self._mode == "write"
        return places * len(self._spaces) * (self._vcpus + writes)

    def round(self) -> Iterator[AnyOperation]:
        """Yield the touches of one round, and the look at the host memory that ends it."""
        if self._mode == "none":
            return
        for vcpu in range(self._vcpus):
            for as_id in self._spaces:
                for gpa in self._pages:
                    yield Touch(gpa + _READ_OFFSET, vcpu=vcpu, as_id=as_id)
                for gpa in self._borders:
                    yield Touch(gpa - 2, vcpu=vcpu, as_id=as_id)
        if self._mode == "write":
            for as_id in self._spaces:
                for gpa in self._pages:
                    yield Touch(gpa + _WRITE_OFFSET, "write", value=self._fresh(), as_id=as_id)
                for gpa in self._borders:
                    yield Touch(gpa - 2, "write", value=self._fresh(), as_id=as_id)
        yield Inspect()

    def _fresh(self) -> int:
        self._values += 1
        return (self._values * _VALUE_STEP) & 0xFFFF_FFFF


def _regions(operations: Iterable[AnyOperation], limit: int) -> Iterator[tuple[int, int]]:
    """Yield (gpa, size in bytes) of what region operations name within reach, page aligned."""
    for operation in operations:
        if isinstance(operation, SetUserMemoryRegion) and operation.memory_size:
            gpa = operation.guest_phys_addr & -PAGE_SIZE_BYTES
            size = operation.memory_size & -PAGE_SIZE_BYTES
            if gpa < limit:
                yield gpa, min(size, limit - gpa)
            elif gpa == limit:
                yield gpa, 0  # The page before it is the last one.


def _pages_around(regions: list[tuple[int, int]]) -> Iterable[int]:
    """Return the pages in and next to regions, or only their landmarks if there are too many."""
    pages: set[int] = set()
    for gpa, size in regions:
        if size <= MAX_SURVEY_PAGES * PAGE_SIZE_BYTES:
            around = range(gpa - PAGE_SIZE_BYTES, gpa + size + PAGE_SIZE_BYTES, PAGE_SIZE_BYTES)
            pages.update(around)
        if len(pages) > MAX_SURVEY_PAGES or size > MAX_SURVEY_PAGES * PAGE_SIZE_BYTES:
            return _landmarks(regions)
    return [page for gpa, size in regions for page in _both_ends(gpa, size)] + sorted(pages)


def _both_ends(gpa: int, size: int) -> tuple[int, int, int, int]:
    end = gpa + size
    return gpa - PAGE_SIZE_BYTES, gpa, end - PAGE_SIZE_BYTES, end


def _landmarks(regions: list[tuple[int, int]]) -> Iterable[int]:
    """Return the pages on both sides of the ends of regions, then of the borders inside."""
    ends = [end for gpa, size in regions for end in (gpa, gpa + size)]
    gigabytes = [at for region in regions for at in _chosen(*region, _GIGABYTE, _MAX_GIGABYTES)]
    borders = [at for region in regions for at in _chosen(*region, _HUGE_PAGE_BYTES, _MAX_BORDERS)]
    words = [at for region in regions for at in _words(*region)]
    every = (*ends, *gigabytes, *borders, *words)
    return dict.fromkeys(border + side for border in every for side in (-PAGE_SIZE_BYTES, 0))


def _words(gpa: int, size: int) -> range:
    """Return where the words of a region's dirty log end, one bit a page; none of large ones."""
    if size > _MAX_WORDS * _WORD_BYTES:
        return range(0)
    return range(gpa + _WORD_BYTES, gpa + size, _WORD_BYTES)


def _chosen(gpa: int, size: int, step: int, most: int) -> list[int]:
    """Return the multiples of ``step`` inside a region, at most ``most`` of them, spread evenly.

    A region that no kernel accepts has none.
    """
    if size > MAX_PAGES * PAGE_SIZE_BYTES:
        return []
    borders = range((gpa + step) & -step, gpa + size, step)
    if len(borders) <= most:
        return list(borders)
    return [borders[(len(borders) - 1) * number // (most - 1)] for number in range(most)]


def _within_windows(pages: Iterable[int]) -> list[int]:
    """Return pages in ascending order, without those that would need too many windows."""
    kept: set[int] = set()
    windows: set[int] = set()
    for page in pages:
        window = page // WINDOW_STEP_BYTES
        if page >= REAL_MODE_END and window not in windows:
            if len(windows) == MAX_SURVEY_WINDOWS:
                continue
            windows.add(window)
        kept.add(page)
    return sorted(kept)


def _borders_of(regions: list[tuple[int, int]], pages: set[int]) -> list[int]:
    """Return the gpas at which a region begins or ends between two visited pages."""
    ends = {end for gpa, size in regions for end in (gpa, gpa + size)}
    return sorted(end for end in ends if end in pages and end - PAGE_SIZE_BYTES in pages)
