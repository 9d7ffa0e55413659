"""What a scenario must do for a known issue to show, derived from its operations alone.

For each issue one function takes a scenario and says whether it does this at all; another takes an
operation too, which has the index ``origin`` or is part of the survey after that one, and says
whether the issue may show there. Where an issue shows at some operations alone, one function yields
their indices.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

from kvm_abi.uapi import APIC_GPA, IDENTITY_MAP_GPA, TSS_PAGES, DirtyLogManual, Quirk
from vmm.model.array import Change
from vmm.scenario import operations as ops
from vmm.scenario.clocks import LAYOUTS
from vmm.scenario.instructions import INSTRUCTIONS, accessed
from vmm.scenario.operations import (
    GUEST_MEMFD,
    HUGE_PAGE_PAGES,
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    RING_ENTRY_BYTES,
    AnyOperation,
    Scenario,
    pages_of,
)
from vmm.scenario.plan import ANYWHERE, batches, steps
from vmm.scenario.races import gfns_of
from vmm.verdict.gfnset import GfnSet
from vmm.verdict.slotsbefore import Slots, slots_before

_WORD = 64


def overruns_a_ring(scenario: Scenario) -> bool:
    """Whether a vCPU writes more pages in one KVM_RUN than its dirty ring has entries."""
    sizes = [
        op.argument & 0xFFFF_FFFF
        for op in scenario.operations
        if isinstance(op, ops.EnableCap) and op.cap.startswith("DIRTY_LOG_RING")
    ]
    valid = [size for size in sizes if size >= PAGE_SIZE_BYTES and not size & (size - 1)]
    if not valid or not any(isinstance(op, ops.HarvestDirtyRing) for op in scenario.operations):
        return False
    entries = min(valid) // RING_ENTRY_BYTES
    plan = batches(steps(scenario, ANYWHERE))
    return any(_written([step.operation for step in batch]) > entries for batch in plan)


def is_harvest(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether this harvests a dirty ring."""
    return isinstance(op, ops.HarvestDirtyRing)


def _written(batch: list[AnyOperation]) -> int:
    """Return how many ring entries the operations of one KVM_RUN may take."""
    pages = {pages_of(op.gpa) for op in batch if isinstance(op, ops.Touch) and op.access == "write"}
    swept = sum(op.count for op in batch if isinstance(op, ops.Sweep) and op.access == "write")
    return len(pages) + swept


def bindings_beyond_all(scenario: Scenario) -> Iterator[int]:
    """Yield each binding to a range of a guest_memfd that ends at or beyond 2^63."""
    for origin, op in enumerate(scenario.operations):
        if (
            isinstance(op, ops.SetUserMemoryRegion2)
            and op.flags & GUEST_MEMFD
            and op.guest_memfd_offset < 1 << 63 <= op.guest_memfd_offset + op.memory_size
        ):
            yield origin


def has_no_room_for_internal_slots(scenario: Scenario) -> bool:
    """Whether something may lie where the kernel wants to make a slot for itself."""
    places: defaultdict[int, list[range]] = defaultdict(list)
    owners: dict[int, type[AnyOperation]] = {}
    for what, moment, place in _internal_slots(scenario):
        places[moment].append(place)
        # Another place for the same slot is refused before memory is mapped.
        if any(owners.setdefault(gfn, what) is not what for gfn in place):
            return True
    if not places:
        return False
    users, named = GfnSet(), set[int]()
    for moment, op in enumerate((*scenario.operations, ops.CloseVm())):
        for place in places.get(moment, ()):
            if users.overlaps(place) or not named.isdisjoint(place[1:]):
                return True
        if isinstance(op, ops.NewVm):
            users, named = GfnSet(), set()
        elif isinstance(op, ops.SetUserMemoryRegion):
            users.add(gfns_of(op))
            named.add(gfns_of(op).start)  # Of a call without pages, too.
    return False


def any_scenario(_scenario: Scenario) -> bool:
    """Whether a scenario may meet what any may meet."""
    return True


def ends_vms(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether VMs end, after which leftovers are looked for."""
    return isinstance(op, ops.CloseVm | ops.Lives)


def is_close(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether this closes the VM, after which leftovers are looked for."""
    return isinstance(op, ops.CloseVm)


def _internal_slots(scenario: Scenario) -> Iterator[tuple[type[AnyOperation], int, range]]:
    """Yield the call that makes the kernel add a slot, the operation at which it does, its gfns."""
    makers = _makers_of_vcpus(scenario)
    begin, first_vcpu = 0, -2
    for origin, op in enumerate(scenario.operations):
        if isinstance(op, ops.NewVm):
            begin = origin + 1
        elif isinstance(op, ops.SetTssAddr):
            first = pages_of(op.gpa)
            if op.gpa + TSS_PAGES * PAGE_SIZE_BYTES <= REAL_MODE_END:
                yield ops.SetTssAddr, origin, range(first, first + TSS_PAGES)
        elif isinstance(op, ops.SetIdentityMapAddr | ops.CreateIrqchip):
            while first_vcpu < begin:
                first_vcpu = next(makers, len(scenario.operations))
            gpa = APIC_GPA if isinstance(op, ops.CreateIrqchip) else op.gpa or IDENTITY_MAP_GPA
            if first_vcpu > origin:  # Else it is refused.
                yield type(op), first_vcpu, range(pages_of(gpa), pages_of(gpa) + 1)


def _makers_of_vcpus(scenario: Scenario) -> Iterator[int]:
    """Yield the index of each operation that creates a vCPU if there is none, or whose survey."""
    for step in steps(scenario, ANYWHERE):
        if isinstance(step.operation, ops.CreateVcpu | ops.Touch | ops.Sweep):
            yield step.origin


def clears_into_a_huge_page(scenario: Scenario) -> bool:
    """Whether a clear of an initially set log ends, in some word, at a huge page's first page."""
    operations = scenario.operations
    enabled = any(
        isinstance(op, ops.EnableCap)
        and op.cap == "MANUAL_DIRTY_LOG_PROTECT2"
        and bool(op.argument & DirtyLogManual.INITIALLY_SET)
        for op in operations
    )
    if not enabled or not any(each.kind in ("thp", "hugetlb") for each in scenario.mappings):
        return False
    bases: dict[int, set[int]] = {}
    for op in operations:
        if isinstance(op, ops.SetUserMemoryRegion) and op.memory_size:
            bases.setdefault(op.slot, set()).add(pages_of(op.guest_phys_addr) % HUGE_PAGE_PAGES)
    return any(
        (1 - end) % HUGE_PAGE_PAGES in bases[op.slot]
        for op in operations
        if isinstance(op, ops.ClearDirtyLog) and op.slot in bases
        for end in _word_ends(op)
    )


def is_log_read(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether this reads a dirty log."""
    return isinstance(op, ops.GetDirtyLog)


def _word_ends(op: ops.ClearDirtyLog) -> Iterator[int]:
    """Yield the page after those cleared of each 64-page word of which more than one is.

    Of many words in a row, only so many that all that follows repeats in another huge page.
    """
    if op.pages == "all":
        within = range(op.first_page, op.first_page + op.num_pages)
        words = within[::_WORD]
        for word in (*words[: HUGE_PAGE_PAGES // _WORD], *words[-1:]):
            if min(word + _WORD, within.stop) - word > 1:
                yield min(word + _WORD, within.stop)
        return
    cleared: dict[int, list[int]] = {}
    for page in op.pages:
        cleared.setdefault(page // _WORD, []).append(page)
    yield from (max(pages) + 1 for pages in cleared.values() if len(pages) > 1)


_ENTER_A_GUEST = (
    ops.PreFaultMemory,
    ops.Touch,
    ops.Sweep,
    ops.Instruction,
    ops.Execute,
    ops.Start,
    ops.Race,
    ops.Churn,
)
"""Operations that load a root of page tables."""

_CHANGE_SLOTS = (ops.SetUserMemoryRegion, ops.Race, ops.Churn)


def prefaults_after_a_deletion(scenario: Scenario) -> bool:
    """Whether KVM_PRE_FAULT_MEMORY comes after a vCPU ran and slots changed since, or meanwhile."""
    change = _first_change_of_a_root(scenario)
    return any(
        _prefaults_after(change, origin, op) for origin, op in enumerate(scenario.operations)
    )


def is_prefault_after_a_deletion(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this pre-faults after a region call, which may have made the root obsolete."""
    return _prefaults_after(_first_change_of_a_root(scenario), origin, op)


def _prefaults_after(change: int, origin: int, op: AnyOperation) -> bool:
    if isinstance(op, ops.Race):
        programs = [step for guest in op.guests for step in guest.program]
        if not any(isinstance(step, ops.PreFaultMemory) for step in programs):
            return False
        calls = [each for host in op.hosts for each in host.operations]
        if any(isinstance(each, ops.SetUserMemoryRegion) for each in calls):
            return True
    elif not isinstance(op, ops.PreFaultMemory):
        return False
    return change < origin


def _first_change_of_a_root(scenario: Scenario) -> int:
    """Return the index of the first operation that changes slots after a vCPU has run."""
    has_run = False
    for origin, op in enumerate(scenario.operations):
        if has_run and isinstance(op, _CHANGE_SLOTS):
            return origin
        has_run |= isinstance(op, _ENTER_A_GUEST)
    return len(scenario.operations)


def tables_stored(scenario: Scenario) -> Iterator[int]:
    """Yield where a guest stores a descriptor table register or FPU state outside memory."""
    return _leaving_memory(scenario, lambda op: INSTRUCTIONS[op.name].cannot_exit)


def all_pushed(scenario: Scenario) -> Iterator[int]:
    """Yield where a guest executes pusha with its stack outside memory."""
    return _leaving_memory(scenario, lambda op: op.name == "pusha")


def all_popped(scenario: Scenario) -> Iterator[int]:
    """Yield where a guest executes popa with its stack outside memory."""
    return _leaving_memory(scenario, lambda op: op.name == "popa", write=False)


def taken_down(scenario: Scenario) -> Iterator[int]:
    """Yield where a guest executes rep ins, downward, outside memory."""
    return _leaving_memory(scenario, lambda op: (op.name, op.down) == ("rep-ins", True))


def _leaving_memory(
    scenario: Scenario, concerns: Callable[[ops.Instruction], bool], write: bool = True
) -> Iterator[int]:
    """Yield each instruction of which a byte that it accesses may lie outside all slots.

    If it may ``write``, outside all writable ones. It may, too, where a second call for a slot may
    have been refused, moved it or deleted it: then it is not known here where the slots are.
    """
    if not any(isinstance(op, ops.Instruction) and concerns(op) for op in scenario.operations):
        return
    called: set[int] = set()
    is_known = True
    for origin, (op, slots) in enumerate(slots_before(scenario)):
        if isinstance(op, ops.SetUserMemoryRegion):
            is_known &= op.slot not in called
            called.add(op.slot)
        elif isinstance(op, ops.Instruction) and concerns(op):
            (gpa, length), *_ = accessed(op)
            if not (is_known and slots.hold(gpa, length, write)):
                yield origin


def narrow_enters(scenario: Scenario) -> Iterator[int]:
    """Yield each 16-bit enter, whose stack pointer may be wider."""
    for origin, op in enumerate(scenario.operations):
        if isinstance(op, ops.Instruction) and (op.name, op.width) == ("enter", 2):
            yield origin


_LEAVE_ROOTS = (
    *(ops.ChangeHostMemory, ops.HostWrite, ops.Inspect, ops.GetDirtyLog, ops.CreateVcpu),
    *(ops.CoalesceMmio, ops.CollectMmio, ops.SetCoalescedRing),
    *(ops.IoEventFd, ops.KvmclockCtrl),
)
"""Operations that run no guest and keep the roots of a vCPU's page tables valid."""


def starts_after_a_miss(scenario: Scenario) -> Iterator[int]:
    """Yield each start of a vCPU whose page tables had no memory at its last start, and have now.

    In between, no slot was moved or deleted, or else only pages of that slot were zapped.
    """
    if not any(isinstance(op, ops.Start) for op in scenario.operations):
        return
    slots = Slots()
    missed: dict[int, int | None] = {}
    zaps_all = True
    for origin, op in enumerate(scenario.operations):
        if isinstance(op, ops.SetUserMemoryRegion):
            if slots.change(op) in (Change.MOVE, Change.DELETE) and zaps_all:
                missed.clear()
        elif isinstance(op, ops.Start):
            is_there = slots.holds(pages_of(op.tables or 0))
            if is_there and op.tables is not None and missed.get(op.vcpu) == op.tables:
                yield origin  # The vCPU still does not find them.
            else:
                missed[op.vcpu] = None if is_there else op.tables
        elif isinstance(op, ops.EnableCap):
            zaps_all &= (op.cap, op.argument) != ("DISABLE_QUIRKS2", Quirk.SLOT_ZAP_ALL)
        elif isinstance(op, ops.Touch | ops.Sweep | ops.Execute | ops.Instruction):
            missed.pop(op.vcpu, None)
        elif not isinstance(op, _LEAVE_ROOTS):
            missed.clear()


def puts_a_bus_out_of_order(scenario: Scenario) -> bool:
    """Whether a device of length 0 lies where another one ends."""
    ranges = [
        (op.gpa, op.size if isinstance(op, ops.CoalesceMmio) else op.length)
        for op in scenario.operations
        if isinstance(op, ops.IoEventFd) or (isinstance(op, ops.CoalesceMmio) and not op.pio)
    ]
    starts = {gpa for gpa, length in ranges if not length}
    return any(length and gpa + length in starts for gpa, length in ranges)


def is_write(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether a guest writes with one touch."""
    return _writes(op)


def reaches_into_the_next_page(scenario: Scenario) -> bool:
    """Whether a vCPU's system time reaches from one page into the next."""
    return any(map(_reaches_on, scenario.operations))


def may_show_a_kept_system_time(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this asks for a system time, or looks for writes, while one reaches into a page."""
    before = scenario.operations[: origin + 1]
    sets = [each for each in before if isinstance(each, ops.SetClockMsr)]
    latest = {each.vcpu: each for each in sets if each.clock == "system_time"}
    if isinstance(op, ops.KvmclockCtrl):
        return op.vcpu in latest and _reaches_on(latest[op.vcpu])
    return isinstance(op, ops.Inspect) and any(map(_reaches_on, latest.values()))


def _reaches_on(op: AnyOperation) -> bool:
    return (
        isinstance(op, ops.SetClockMsr)
        and op.on
        and op.clock == "system_time"
        and op.gpa % PAGE_SIZE_BYTES + LAYOUTS[op.clock].size > PAGE_SIZE_BYTES
    )


_HALF_A_RING = 85
"""A ring of coalesced MMIO with this many entries counted as full; it has room for 170."""


def fills_half_a_ring(scenario: Scenario) -> bool:
    """Whether a guest writes so often that a ring of coalesced MMIO may be half full."""
    is_kept = any(isinstance(op, ops.CoalesceMmio) for op in scenario.operations)
    return is_kept and sum(map(_writes, scenario.operations)) > _HALF_A_RING


def is_write_to_half_a_ring(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether a guest writes when the ring may be half full."""
    before = scenario.operations[: max(origin, 0)]
    return _writes(op) and sum(map(_writes, before)) >= _HALF_A_RING


def _writes(op: AnyOperation) -> bool:
    return isinstance(op, ops.Touch) and op.access == "write"
