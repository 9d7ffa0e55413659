"""Checks that make the events of a stranger's history safe to judge.

An event's operation is one of the scenario, which was checked, or one that a plan adds. Its outcome
may be anything that a kernel could have answered, within the range of each field.
"""

from collections.abc import Iterable
from typing import assert_never

from vmm.scenario.history import (
    AnyOutcome,
    Call,
    Closed,
    DirtyPages,
    Done,
    Event,
    Header,
    HostChange,
    Inspected,
    Mmio,
    MmioKept,
    MsrsSet,
    PreFaulted,
    Raced,
    Ran,
    Refused,
    RingPages,
    RingsReset,
    SetUpRefused,
    Stopped,
    Swept,
    Touched,
    Unmapped,
)
from vmm.scenario.operations import (
    MAX_GPA_BITS,
    PAGE_SIZE_BYTES,
    AnyOperation,
    CloseVm,
    Inspect,
    Race,
    SetUserMemoryRegion,
    SwitchVm,
    Touch,
    address_spaces,
)
from vmm.scenario.plan import guest_mapping, guest_slots
from vmm.scenario.slots import as_id_of

MAX_ERRNO = 4095
_WORD = range(1 << 32)
_LONG = range(1 << 64)
_MOMENTS = range(1 << 62)


class EventChecker:
    """Checks the events of one history, in order."""

    def __init__(self, header: Header) -> None:
        scenario = header.scenario
        self._operations = scenario.operations
        self._guest_slots = frozenset(guest_slots(scenario))
        self._vcpus = scenario.vcpus
        self._spaces = address_spaces(scenario)
        self._sizes = {
            mapping.name: mapping.pages * PAGE_SIZE_BYTES
            for mapping in (*scenario.mappings, guest_mapping(scenario))
        }
        self._origin = -1

    def problem(self, event: Event) -> str:
        """Return what is wrong with the next event, beginning with the field; empty if nothing."""
        if not self._origin <= event.origin <= len(self._operations):
            return f"origin: {event.origin} comes after {self._origin} (of {self._counted})"
        self._origin = event.origin
        if not self._belongs(event.origin, event.operation):
            return "operation: neither one of the scenario, at this origin, nor one of a survey"
        found = self._outcome(event.outcome, event.operation)
        return f"outcome{found}" if found else _kernel(event)

    @property
    def _counted(self) -> str:
        return f"{len(self._operations)} operations"

    def _belongs(self, origin: int, op: AnyOperation) -> bool:
        if 0 <= origin < len(self._operations) and op == self._operations[origin]:
            return True
        if isinstance(op, Touch):
            return (
                op.gpa in range((1 << MAX_GPA_BITS) - op.width + 1)
                and op.value in _WORD
                and op.vcpu in range(self._vcpus)
                and op.as_id in self._spaces
            )
        return isinstance(op, Inspect | CloseVm | SwitchVm) or op in self._guest_slots

    def _outcome(self, outcome: AnyOutcome, op: AnyOperation) -> str:
        match outcome:
            case Refused(number):
                return "" if number in range(MAX_ERRNO + 1) else f".errno: {number} is none"
            case Touched(value, mmio):
                return _outside("value", (value,), _WORD) or _exits(mmio)
            case Ran():
                return _ran(outcome) or _exits(outcome.mmio)
            case Swept(runs, mmio):
                return _outside("runs", (n for run in runs for n in run), _WORD) or _exits(mmio)
            case DirtyPages(pages, perhaps, words):
                return _outside("pages", (*pages, *perhaps, words or 0), _WORD)
            case RingPages():
                return _ring(outcome)
            case PreFaulted(gpa, size):
                return _outside("gpa", (gpa, size), _LONG)
            case Inspected(changes):
                return self._changes(changes)
            case Raced():
                if not isinstance(op, Race):
                    return ": of a race, but the operation is none"
                return self._raced(outcome, op)
            case RingsReset(entries, harvested):
                return _outside("entries", (entries, harvested), _LONG)
            case MmioKept(writes, events, ports):
                return (
                    _exits(writes)
                    or _outside("events", (n for _, n in events), _LONG)
                    or _outside("ports", ports, range(len(writes)))
                )
            case MsrsSet(number):
                return _outside("number", (number,), _WORD)
            case Unmapped(mappings=number):
                return _outside("mappings", (number,), _WORD)
            case Done() | Stopped() | Closed() | SetUpRefused():
                return ""
            case _:
                assert_never(outcome)

    def _changes(self, changes: Iterable[HostChange]) -> str:
        for index, change in enumerate(changes):
            size = self._sizes.get(change.mapping, -1)
            if not 0 <= change.offset <= size - len(change.data) or not change.data:
                return f".changes[{index}]: not within a mapping"
        return ""

    def _raced(self, raced: Raced, race: Race) -> str:
        """Check that lists have the lengths that the race says, and that indexes are in range."""
        hosts, guests = len(race.hosts), len(race.guests)
        per_guest = (raced.helped, raced.rings)
        if len(raced.calls) != hosts or len(raced.windows) != guests or len(raced.seen) != guests:
            return f": of {hosts} host threads and {guests} vCPUs is needed"
        if any(len(each) not in (0, guests) for each in per_guest):
            return f".rings: of {guests} vCPUs is needed"
        for thread, (host, calls) in enumerate(zip(race.hosts, raced.calls, strict=True)):
            if host.rounds and len(calls) != host.rounds * len(host.operations):
                return f".calls[{thread}]: {host.rounds * len(host.operations)} are needed"
            found = _calls(calls)
            if found:
                return f".calls[{thread}]{found}"
        for vcpu, calls in enumerate(raced.helped):
            found = _calls(calls)
            if found:
                return f".helped[{vcpu}]{found}"
        for vcpu, ring in enumerate(raced.rings):
            found = _ring(ring)
            if found:
                return f".rings[{vcpu}]{found}"
        for vcpu in range(guests):
            found = self._windows(raced, race, vcpu)
            if found:
                return found
        return self._changes(raced.changes)

    def _windows(self, raced: Raced, race: Race, vcpu: int) -> str:
        """Check that a vCPU's windows follow each other, and have an outcome for each step."""
        guest, seen = race.guests[vcpu], raced.seen[vcpu]
        if len(raced.windows[vcpu]) > guest.windows:
            return f".windows[{vcpu}]: more than {guest.windows}"
        last = -1
        for number, window in enumerate(raced.windows[vcpu]):
            if not last < window.begin < window.end or window.end not in _MOMENTS:
                return f".windows[{vcpu}][{number}]: moments that do not follow each other"
            if window.seen not in range(len(seen)):
                return f".windows[{vcpu}][{number}]: has seen what is not there"
            last = window.end
        for number, outcomes in enumerate(seen):
            place = f".seen[{vcpu}][{number}]"
            if len(outcomes) != len(guest.program):
                return f"{place}: {len(guest.program)} outcomes are needed"
            for op, outcome in zip(guest.program, outcomes, strict=True):
                found = self._outcome(outcome, op)
                if found:
                    return f"{place}{found}"
        return ""


def _calls(calls: Iterable[Call]) -> str:
    """Check that a thread's calls follow each other, and the numbers in their outcomes."""
    last = -1
    for number, call in enumerate(calls):
        if not last < call.begin < call.end or call.end not in _MOMENTS:
            return f"[{number}]: moments that do not follow each other"
        last = call.end
        match call.outcome:
            case DirtyPages(pages, perhaps):
                found = _outside("pages", (*pages, *perhaps), _WORD)
            case RingPages():
                found = _ring(call.outcome)
            case _:
                found = ""
        if found:
            return f"[{number}]{found}"
    return ""


def _ring(ring: RingPages) -> str:
    numbers = (number for page in (*ring.pages, *ring.perhaps) for number in page)
    return _outside("pages", (*numbers, ring.full, ring.entries), _WORD)


def _ran(ran: Ran) -> str:
    registers = (ran.ax, ran.bx, ran.cx, ran.dx, ran.flags, ran.undefined, ran.taken)
    ways = (abs(way) for way in (ran.sp, ran.bp, ran.si, ran.di))
    return _outside("registers", (*registers, *ways), _LONG)


def _exits(mmio: Iterable[Mmio]) -> str:
    return _outside("mmio", (each.gpa for each in mmio), _LONG)


def _outside(field: str, numbers: Iterable[int], within: range) -> str:
    for number in numbers:
        if number not in within:
            return f".{field}: {number:#x} is not within 0 to {within[-1]:#x}"
    return ""


def _kernel(event: Event) -> str:
    if event.kernel is None:
        return ""
    if not isinstance(event.operation, SetUserMemoryRegion):
        return "kernel: only a region operation has it"
    as_id = as_id_of(event.operation.slot)
    if event.kernel.as_id != as_id:
        return f"kernel: of as_id {event.kernel.as_id}, and the slot's is {as_id}"
    return ""
