"""From a scenario to the steps that are carried out: the guest's slot, surveys, looks, the end.

A survey is made of ordinary operations. Where it touches depends on the scenario alone: every
page that any region of it names, and the pages next to those, before they are mapped, while they
are, and after. So a vCPU has always touched a place before it changes, and the kernel's answers
have no say in what is looked at.
"""

from collections.abc import Iterable, Iterator

import msgspec

from vmm.memslots.operations import (
    GUEST_MAPPING,
    GUEST_SIZE_BYTES,
    PAGE_SIZE_BYTES,
    AnyOperation,
    CloseVm,
    Inspect,
    NewVm,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)

TOUCH_LIMIT = 1 << 32
"""The first gpa that the real-mode guest cannot reach."""

MAX_SURVEY_PAGES = 2048
"""A survey of more pages than these visits the ends and the huge-page borders of each region."""

_HUGE_PAGES = 512
_READ_OFFSET = 0x40  # where no border write lands, so that the identity stays whole
_WRITE_OFFSET = 0x20
_VALUE_STEP = 0x9E3779B1


class Step(msgspec.Struct, frozen=True, gc=False):
    """One operation to carry out, and the index of the scenario's operation behind it."""

    origin: int
    operation: AnyOperation


def steps(scenario: Scenario) -> Iterator[Step]:
    """Yield what the executor carries out for a scenario, in order."""
    survey = _Survey(scenario)
    yield from _begin(-1, scenario, survey)
    written = False
    for origin, operation in enumerate(scenario.operations):
        if isinstance(operation, SetUserMemoryRegion):
            if written:
                yield Step(origin, Inspect())
                written = False
            yield Step(origin, operation)
            yield from (Step(origin, touch) for touch in survey.round())
            continue
        yield Step(origin, operation)
        if isinstance(operation, NewVm):
            yield from _begin(origin, scenario, survey)
        written = not isinstance(operation, Inspect)
    yield Step(len(scenario.operations), Inspect())
    yield Step(len(scenario.operations), CloseVm())


def _begin(origin: int, scenario: Scenario, survey: "_Survey") -> Iterator[Step]:
    """Yield the creation of the guest's own slot, and a first survey."""
    yield Step(origin, guest_slot(scenario))
    yield from (Step(origin, touch) for touch in survey.round())


def guest_slot(scenario: Scenario) -> SetUserMemoryRegion:
    """Return the operation that creates the memslot which the guest lives in."""
    return SetUserMemoryRegion(
        slot=scenario.guest.slot,
        guest_phys_addr=scenario.guest.gpa,
        memory_size=GUEST_SIZE_BYTES,
        userspace_addr=Place(GUEST_MAPPING),
    )


class _Survey:
    """The touches of one survey round, and a fresh value for every write."""

    def __init__(self, scenario: Scenario) -> None:
        self._mode = scenario.survey
        self._vcpus = scenario.vcpus
        self._values = 0
        self._pages: list[int] = []
        self._borders: list[int] = []
        if self._mode != "none":
            regions = list(_regions(scenario.operations))
            guest = range(scenario.guest.gpa, scenario.guest.gpa + GUEST_SIZE_BYTES)
            self._pages = _pages_around(regions, guest)
            self._borders = _borders_of(regions, guest)

    def round(self) -> Iterator[AnyOperation]:
        """Yield the touches of one round, and the look at the host memory that ends it."""
        if self._mode == "none":
            return
        for vcpu in range(self._vcpus):
            for gpa in self._pages:
                yield Touch(gpa + _READ_OFFSET, vcpu=vcpu)
            for gpa in self._borders:
                yield Touch(gpa - 2, vcpu=vcpu)
        if self._mode == "write":
            for gpa in self._pages:
                yield Touch(gpa + _WRITE_OFFSET, "write", value=self._fresh())
            for gpa in self._borders:
                yield Touch(gpa - 2, "write", value=self._fresh())
        yield Inspect()

    def _fresh(self) -> int:
        self._values += 1
        return (self._values * _VALUE_STEP) & 0xFFFF_FFFF


def _regions(operations: Iterable[AnyOperation]) -> Iterator[tuple[int, int]]:
    """Yield (gpa, size in bytes) of what region operations name below 4 GiB, page aligned."""
    for operation in operations:
        if isinstance(operation, SetUserMemoryRegion) and operation.memory_size:
            gpa = operation.guest_phys_addr & -PAGE_SIZE_BYTES
            size = min(operation.memory_size & -PAGE_SIZE_BYTES, TOUCH_LIMIT)
            if gpa < TOUCH_LIMIT:
                yield gpa, min(size, TOUCH_LIMIT - gpa)


def _pages_around(regions: list[tuple[int, int]], guest: range) -> list[int]:
    pages: set[int] = set()
    for gpa, size in regions:
        pages.update(range(gpa - PAGE_SIZE_BYTES, gpa + size + PAGE_SIZE_BYTES, PAGE_SIZE_BYTES))
        if len(pages) > MAX_SURVEY_PAGES:
            pages = set().union(*(_landmarks(*region) for region in regions))
            break
    return sorted(p for p in pages if 0 <= p < TOUCH_LIMIT and p not in guest)


def _landmarks(gpa: int, size: int) -> set[int]:
    """Return the pages at the ends and at the 2 MiB borders of a region, inside and outside."""
    huge = _HUGE_PAGES * PAGE_SIZE_BYTES
    borders = [gpa, gpa + size, *range((gpa + huge) & -huge, gpa + size, huge)]
    return {border + side for border in borders[:1024] for side in (-PAGE_SIZE_BYTES, 0)}


def _borders_of(regions: list[tuple[int, int]], guest: range) -> list[int]:
    """Return the gpas at which a region begins or ends, and that an access can straddle."""
    ends = {end for gpa, size in regions for end in (gpa, gpa + size)}
    return sorted(
        end
        for end in ends
        if 0 < end < TOUCH_LIMIT and end - 2 not in guest and end + 1 not in guest
    )
