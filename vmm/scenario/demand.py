"""How much memory and time a scenario takes, estimated before it runs.

These are worst cases on a slow machine, computed from the scenario alone: its mappings, its slots,
what the guest surveys after each change, the threads of its races. They serve one purpose: to
refuse a stranger's file that would take too much. The estimate itself takes time linear in the
scenario's length.

The costs below are twice what Linux 6.18 and this program took on a machine of two small cores.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from vmm.scenario import operations as ops
from vmm.scenario.hostpages import CHANGES
from vmm.scenario.operations import (
    HUGE_PAGE_PAGES,
    MAX_GPA_BITS,
    PAGE_SIZE_BYTES,
    AnyOperation,
    HostAction,
    Scenario,
    pages_of,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.reached import filled_pages, reached_pages, within
from vmm.scenario.slots import MAX_PAGES
from vmm.scenario.survey import Survey

_PROCESS_BYTES = 32 << 20
"""The process that executes the scenario."""

_COPIES = 2
"""Copies of a watched page: its content at the last look, and the one compared with that."""

_MODEL_COPIES = 2
"""Copies of a written page in the model: what it holds, and what it held at the last look."""

_RECORDED_COPIES = 6
"""Copies of a page whose content changed: in the history, as text, as bytes, while it is read."""

_SLOT_BYTES = 24 << 10
"""What a kernel without TDP keeps for the smallest slot: five arrays, each in pages of its own."""

_SLOT_PAGE_BYTES = 17
"""What a kernel keeps for each page of a slot: its reverse map, its log twice, and some more."""

_CHANGED_BYTES = 400
"""What this program keeps of a page that the host has changed or taken away."""

_OPERATION_BYTES = 1 << 10
_TOUCH_BYTES = 700
"""An operation, or a touch of a survey, with its event, in all processes together."""

_ELEMENT_BYTES = 64
"""A page number in a dirty log, an attribute of a gfn, an element of a sweep."""

_WINDOW_BYTES = 300
_STEP_BYTES = 100
"""A window of a vCPU in a race, and the outcome of one of its steps."""

_VCPU_BYTES = 2 << 20

_CALL_US = 100.0
_REGION_US = 440.0
_VM_US = 40_000.0
_TOUCH_US = 40.0
_ELEMENT_US = 0.5
_EXIT_US = 10.0
_LOOK_US = 2.0
"""To look at one page of a mapping."""

_PAGE_US = 1.0
"""What the kernel does for a page that is mapped, unmapped, logged or looked up."""

_SHOWN_US = 15.0
"""For the judge to follow a page that may show something else after a change."""

_LOST_US = 150.0
"""To record and judge a page whose content changed."""

_LIFE_US = 9_000.0
_OTHER_LIFE_US = 50_000.0
"""A VM that this thread closes, and one that another thread or process ends."""

_CHURN_US = 1_500.0
_FAILING = 20
"""So many calls a change takes if each of its allocations is to fail once."""

_WATCHED = 4.5
"""The factor for watching the kernel's memory: the work is done about twice, with waits."""

_WINDOW_US = 100.0
_STEP_US = 15.0


_SLOW_US = {"merge": 2e6, "fork": 100_000.0, "reap": 20_000.0}
"""Changes that take longer than the system call."""

_NEVER_WRITE = (ops.SetUserMemoryRegion, ops.Inspect)


_OfMemory = (
    ops.SetUserMemoryRegion
    | ops.SetUserMemoryRegion2
    | ops.SetMemoryAttributes
    | ops.PreFaultMemory
    | ops.Race
    | ops.HostOperation
    | ops.DirtyOperation
)
"""The operations on slots, and on what they show."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a stranger's scenario may take."""

    memory_bytes: int
    seconds: float


USUAL = Limits(1 << 30, 60.0)
LARGE = Limits(16 << 30, 3600.0)
"""What --allow-large allows."""


@dataclass(slots=True)
class Demand:
    """What a scenario takes at most, roughly."""

    memory_bytes: int = 0
    seconds: float = 0.0

    def problem(self, limits: Limits) -> str:
        """Return what exceeds the limits, and the remedy; empty if nothing does."""
        for what, number, limit in (
            ("MiB of memory", self.memory_bytes / (1 << 20), limits.memory_bytes / (1 << 20)),
            ("s", self.seconds, limits.seconds),
        ):
            if number > limit:
                remedy = "" if limits.seconds >= LARGE.seconds else "; --allow-large allows more"
                return f"may take {number:.0f} {what}, and the limit is {limit:.0f} {what}{remedy}"
        return ""


def check_demand(scenario: Scenario, limits: Limits = USUAL) -> None:
    """Raise ScenarioError if a valid scenario may take too much."""
    problem = demand(scenario).problem(limits)
    if problem:
        raise ScenarioError(f"$: {problem}")


def memory_bytes(scenario: Scenario) -> int:
    """Return roughly how much memory running and judging a scenario takes at most."""
    return demand(scenario).memory_bytes


def short_of_memory(scenario: Scenario, free_bytes: int) -> str:
    """Return how much memory a scenario needs, as a phrase, if it is not free; else empty."""
    needed = memory_bytes(scenario)
    if needed <= free_bytes:
        return ""
    return f"{-(-needed >> 20)} MiB of free memory (here {free_bytes >> 20} MiB are free)"


def demand(scenario: Scenario) -> Demand:
    """Return roughly what running and judging a scenario takes at most."""
    return _Account(scenario).total()


class _Account:
    """Adds up what the operations of a scenario take."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._bytes = _PROCESS_BYTES + scenario.vcpus * _VCPU_BYTES
        self._us = 2 * _VM_US
        self._sizes = {mapping.name: mapping.pages for mapping in scenario.mappings}
        self._slots = _slots(scenario)
        self._most_pages = max(self._slots.values(), default=0)
        self._files = {
            op.name: op.size for op in scenario.operations if isinstance(op, ops.CreateGuestMemfd)
        }
        self._mapped = {
            op.mapping for op in scenario.operations if isinstance(op, ops.MapGuestMemfd)
        }
        self._reached = reached_pages(scenario, 1 << MAX_GPA_BITS)
        shown = [
            mapping
            for mapping in scenario.mappings
            if mapping.kind not in ("unmapped", "guest_memfd") or mapping.name in self._mapped
        ]
        self._filled = sum(filled_pages(mapping, self._reached) for mapping in shown)
        self._looked_at = sum(
            len(self._reached.get(mapping.name, range(mapping.pages))) for mapping in shown
        )
        survey = Survey(scenario, 1 << 52)
        self._survey_touches, self._survey_pages = survey.touches, survey.pages
        self._surveys = scenario.survey != "none"
        self._is_written = False
        self._kinds = {mapping.name: mapping.kind for mapping in scenario.mappings}
        self._lost = self._changed = 0
        self._views = 1 + sum(bool(mapping.of) for mapping in scenario.mappings)

    def total(self) -> Demand:
        """Return the sum of all costs."""
        scenario = self._scenario
        self._survey(3)  # Before the first change, and at the end.
        for operation in scenario.operations:
            self._bytes += _OPERATION_BYTES
            self._operation(operation)
            self._is_written |= not isinstance(operation, _NEVER_WRITE)
        self._bytes += (self._filled + self._looked_at * _COPIES) * PAGE_SIZE_BYTES
        self._bytes += len(self._slots) * _SLOT_BYTES
        self._bytes += sum(self._slots.values()) * _SLOT_PAGE_BYTES
        written = self._survey_pages + len(scenario.operations) + min(self._lost, self._looked_at)
        self._bytes += min(written, self._looked_at) * PAGE_SIZE_BYTES * _MODEL_COPIES
        self._bytes += self._lost * PAGE_SIZE_BYTES * _RECORDED_COPIES
        self._us += self._lost * _LOST_US
        self._bytes += min(self._changed, self._looked_at) * _CHANGED_BYTES
        self._bytes += self._guest_memfd_pages() * PAGE_SIZE_BYTES
        return Demand(self._bytes, self._us / 1e6)

    def _guest_memfd_pages(self) -> int:
        """Return how many pages of guest_memfds are allocated that no mapping shows.

        A guest's access allocates one, and pre-faulting all that slots show.
        """
        operations = self._scenario.operations
        shown = sum(
            pages_of(op.memory_size)
            for op in operations
            if isinstance(op, ops.SetUserMemoryRegion2) and op.guest_memfd in self._files
        )
        if any(isinstance(op, ops.PreFaultMemory) for op in operations):
            return min(shown, sum(pages_of(size) for size in self._files.values()))
        return min(shown, self._survey_pages + 4 * len(operations))

    def _operation(self, op: AnyOperation) -> None:
        if isinstance(op, ops.GuestOperation):
            self._by_guest(op)
        elif isinstance(op, ops.MemfdOperation):
            self._of_memfd(op)
        elif isinstance(op, ops.InternalOperation):
            self._us += 20 * _CALL_US if isinstance(op, ops.CreateVcpu) else _VM_US
        elif isinstance(op, (ops.DeviceOperation, ops.ClockOperation, ops.VapicOperation)):
            self._us += 5 * _CALL_US
        elif isinstance(op, ops.VmOperation):
            self._of_vm(op)
        else:
            self._of_memory(op)

    def _by_guest(self, op: ops.GuestOperation) -> None:
        match op:
            case ops.Touch() | ops.Execute():
                self._us += _TOUCH_US
                self._bytes += _TOUCH_BYTES
            case ops.Start():
                self._us += 4 * _CALL_US + 8 * _EXIT_US
                self._bytes += _TOUCH_BYTES
            case ops.Instruction():
                self._us += 4 * _CALL_US + op.count * _EXIT_US
                self._bytes += _TOUCH_BYTES + op.count * _ELEMENT_BYTES
            case ops.Sweep():
                self._us += _CALL_US + op.count * _EXIT_US
                self._bytes += op.count * _ELEMENT_BYTES
            case _:
                assert_never(op)

    def _of_memfd(self, op: ops.MemfdOperation) -> None:
        self._us += _CALL_US
        match op:
            case ops.CreateGuestMemfd() | ops.CloseGuestMemfd() | ops.ResizeGuestMemfd():
                pass
            case ops.MapGuestMemfd():
                self._us += self._sizes.get(op.mapping, 0) * _LOST_US
            case ops.PunchGuestMemfd():
                size = min(op.size, self._files.get(op.name, 0))
                self._lost += min(pages_of(size), self._looked_at)
                self._us += min(pages_of(size), self._most_pages) * _PAGE_US
            case _:
                assert_never(op)

    def _of_vm(self, op: ops.VmOperation) -> None:
        match op:
            case ops.EnableCap() | ops.SetNrMmuPages():
                self._us += 20 * _CALL_US
            case ops.SwitchVm():
                self._us += _VM_US
                self._bytes += self._scenario.vcpus * _VCPU_BYTES
                self._survey(1)
            case ops.NewVm():
                self._us += _VM_US
                self._survey(1)
            case ops.CloseVm():
                self._us += _VM_US
            case ops.Lives():
                life = _LIFE_US if op.death == "closed" else _OTHER_LIFE_US
                self._us += op.times * life * (_WATCHED if op.watch == "kernel" else 1)
            case ops.Churn():
                calls = _FAILING if op.what == "failing-changes" else 1
                self._us += op.times * calls * _CHURN_US * _WATCHED
            case _:
                assert_never(op)

    def _of_memory(self, op: _OfMemory) -> None:
        match op:
            case ops.SetUserMemoryRegion():
                self._region(op)
                self._look()
                self._survey(1)
            case ops.Race():
                self._look()
                self._race(op)
                self._us += self._looked_at * _LOOK_US
                self._survey(1)
            case ops.Inspect():
                self._is_written = True
                self._look()
            case ops.HarvestDirtyRing() | ops.ResetDirtyRings() | ops.MapVcpuPages():
                self._us += 20 * _CALL_US
            case ops.PreFaultMemory():
                self._pre_fault(op)
            case _:
                self._host_action(op)

    def _region(self, op: ops.SetUserMemoryRegion) -> None:
        self._us += _REGION_US + _pages(op) * _PAGE_US
        if op.caller == "forked-child" or op.fail_nth:
            self._us += _VM_US

    def _host_action(self, op: HostAction, times: int = 1) -> None:
        match op:
            case ops.SetUserMemoryRegion():
                self._us += times * (_REGION_US + _pages(op) * _PAGE_US)
            case ops.ChangeHostMemory():
                pages = self._pages_that_matter(op)
                self._us += times * (_CALL_US + (pages + op.pages // HUGE_PAGE_PAGES) * _PAGE_US)
                self._changed += pages
                self._us += times * _SLOW_US.get(op.how, 0.0)
                if not CHANGES[op.how].keeps:
                    self._us += times * pages * _SHOWN_US
                if self._loses_content(op):
                    self._lost += times * pages * self._views
            case ops.GetDirtyLog() | ops.ClearDirtyLog():
                pages = self._slots.get(op.slot, self._most_pages)
                self._us += times * (_CALL_US + pages * _PAGE_US)
                self._bytes += times * pages * _ELEMENT_BYTES
            case (
                ops.HostWrite()
                | ops.HarvestDirtyRing()
                | ops.ResetDirtyRings()
                | ops.CloseGuestMemfd()
            ):
                self._us += times * _CALL_US
            case ops.SetMemoryAttributes():
                pages = pages_of(op.size) if op.address + op.size < 1 << 64 else 0
                self._us += times * (_CALL_US + pages * _PAGE_US)
                self._bytes += pages * _ELEMENT_BYTES
            case ops.PunchGuestMemfd():
                pages = min(pages_of(op.size), pages_of(self._files.get(op.name, 0)))
                self._us += times * (_CALL_US + pages * _PAGE_US)
            case _:
                assert_never(op)

    def _pages_that_matter(self, op: ops.ChangeHostMemory) -> int:
        """Return how many of the changed pages are filled and watched."""
        reached = self._reached.get(op.place.mapping)
        first = op.place.offset // PAGE_SIZE_BYTES
        return op.pages if reached is None else len(within(reached, range(first, first + op.pages)))

    def _loses_content(self, op: ops.ChangeHostMemory) -> bool:
        """Whether pages show something else afterwards, so that it is recorded."""
        if CHANGES[op.how].keeps:
            return False
        is_file = self._kinds[op.place.mapping] in ("shared", "memfd", "hugetlb_memfd")
        return not (is_file and op.how in ("drop", "unmap", "map"))

    def _pre_fault(self, op: ops.PreFaultMemory) -> None:
        """Add a pre-fault: it ends where there is no slot."""
        pages = min(pages_of(op.size), sum(self._slots.values()))
        self._us += _CALL_US + pages * 3 * _PAGE_US

    def _look(self) -> None:
        """Add a look at the mappings if something may have been written since the last one."""
        if self._is_written:
            self._us += _CALL_US + self._looked_at * _LOOK_US
        self._is_written = False

    def _survey(self, times: int) -> None:
        if self._surveys:
            self._us += times * (self._survey_touches * _TOUCH_US + self._looked_at * _LOOK_US)
            self._bytes += times * self._survey_touches * _TOUCH_BYTES

    def _race(self, race: ops.Race) -> None:
        """Add all windows that vCPUs may run, each with everything it may see."""
        places = sum(len(guest.program) for guest in race.guests)
        for guest in race.guests:
            steps = len(guest.program)
            self._us += guest.windows * (_WINDOW_US + steps * _STEP_US)
            self._bytes += guest.windows * (_WINDOW_BYTES + steps * _STEP_BYTES)
        rounds = max((host.rounds for host in race.hosts), default=0)
        for host in race.hosts:
            for op in host.operations:
                times = host.rounds or rounds
                self._host_action(op, times)
                self._us += times * places * _ELEMENT_US
                self._bytes += times * _OPERATION_BYTES


def _slots(scenario: Scenario) -> dict[int, int]:
    """Return, by 32-bit slot number, the most pages that each slot has if the kernel accepts it."""
    slots: dict[int, int] = {}
    for op in _region_calls(scenario):
        slots[op.slot] = max(slots.get(op.slot, 0), _pages(op))
    return slots


def _region_calls(scenario: Scenario) -> Iterator[ops.SetUserMemoryRegion]:
    for operation in scenario.operations:
        if isinstance(operation, ops.SetUserMemoryRegion):
            yield operation
        elif isinstance(operation, ops.Race):
            for host in operation.hosts:
                for action in host.operations:
                    if isinstance(action, ops.SetUserMemoryRegion):
                        yield action


def _pages(op: ops.SetUserMemoryRegion) -> int:
    """Return how many pages a call may give a slot; 0 where a kernel refuses the size at once."""
    pages = pages_of(op.memory_size)
    return pages if pages <= MAX_PAGES else 0
