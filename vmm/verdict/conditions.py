"""What a scenario must do for a known issue to show, derived from its operations alone.

For each issue one function takes a scenario and says whether it does this at all; another takes an
operation too, which has the index ``origin`` or is part of the survey after that one, and says
whether the issue may show there.
"""

from collections.abc import Iterator

from kvm_abi.uapi import APIC_GPA, IDENTITY_MAP_GPA, TSS_PAGES, DirtyLogManual, Quirk
from vmm.scenario.instructions import INSTRUCTIONS, accessed
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    READONLY,
    REAL_MODE_END,
    SMM,
    AnyOperation,
    ChangeHostMemory,
    Churn,
    ClearDirtyLog,
    CloseVm,
    CoalesceMmio,
    CollectMmio,
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    Execute,
    GetDirtyLog,
    HarvestDirtyRing,
    HostWrite,
    Inspect,
    Instruction,
    IoEventFd,
    KvmclockCtrl,
    NewVm,
    PreFaultMemory,
    Race,
    Scenario,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Start,
    Sweep,
    Touch,
    access_end,
    pages_of,
)
from vmm.scenario.plan import batches, steps
from vmm.scenario.races import gfns_of
from vmm.scenario.slots import as_id_of
from vmm.verdict.slotsbefore import Slots, is_held

_RING_ENTRY_BYTES = 16
_HUGE_PAGES = 512
_WORD = 64
_ANYWHERE = 1 << 52
"""The first gpa that no x86 guest reaches: with this limit a plan leaves out no touch."""


def overruns_a_ring(scenario: Scenario) -> bool:
    """Whether a vCPU writes more pages in one KVM_RUN than its dirty ring has entries."""
    sizes = [
        op.argument & 0xFFFF_FFFF
        for op in scenario.operations
        if isinstance(op, EnableCap) and op.cap.startswith("DIRTY_LOG_RING")
    ]
    valid = [size for size in sizes if size >= PAGE_SIZE_BYTES and not size & (size - 1)]
    if not valid or not any(isinstance(op, HarvestDirtyRing) for op in scenario.operations):
        return False
    entries = min(valid) // _RING_ENTRY_BYTES
    plan = batches(steps(scenario, _ANYWHERE))
    return any(_written([step.operation for step in batch]) > entries for batch in plan)


def is_harvest(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether this harvests a dirty ring."""
    return isinstance(op, HarvestDirtyRing)


def _written(batch: list[AnyOperation]) -> int:
    """Return how many ring entries the operations of one KVM_RUN may take."""
    pages = {pages_of(op.gpa) for op in batch if isinstance(op, Touch) and op.access == "write"}
    swept = sum(op.count for op in batch if isinstance(op, Sweep) and op.access == "write")
    return len(pages) + swept


def binds_beyond_all(scenario: Scenario) -> bool:
    """Whether a slot is bound to a range of a guest_memfd that ends at or beyond 2^63."""
    return any(is_bound_beyond_all(scenario, -1, op) for op in scenario.operations)


def is_bound_beyond_all(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether this is such a call."""
    return (
        isinstance(op, SetUserMemoryRegion2)
        and bool(op.flags & GUEST_MEMFD)
        and op.guest_memfd_offset < 1 << 63 <= op.guest_memfd_offset + op.memory_size
    )


def has_no_room_for_internal_slots(scenario: Scenario) -> bool:
    """Whether something may lie where the kernel wants to make a slot for itself."""
    made = list(_internal_slots(scenario))
    return any(
        any(_overlap(place, users) for users in _users_before(scenario, moment))
        # Another place for the same slot is refused before memory is mapped.
        or any(_overlap(place, other) and of is not what for of, _, other in made[:number])
        for number, (what, moment, place) in enumerate(made)
    )


def _users_before(scenario: Scenario, moment: int) -> Iterator[range]:
    """Yield the gfns of the region calls before ``moment`` in the same VM, the last one first."""
    for op in reversed(scenario.operations[:moment]):
        if isinstance(op, NewVm):
            return
        if isinstance(op, SetUserMemoryRegion):
            yield gfns_of(op)


def is_close(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether this closes the VM, after which leftovers are looked for."""
    return isinstance(op, CloseVm)


def _internal_slots(scenario: Scenario) -> Iterator[tuple[type[AnyOperation], int, range]]:
    """Yield the call that makes the kernel add a slot, the operation at which it does, its gfns."""
    begin = 0
    for origin, op in enumerate(scenario.operations):
        if isinstance(op, NewVm):
            begin = origin + 1
        elif isinstance(op, SetTssAddr):
            first = pages_of(op.gpa)
            if op.gpa + TSS_PAGES * PAGE_SIZE_BYTES <= REAL_MODE_END:
                yield SetTssAddr, origin, range(first, first + TSS_PAGES)
        elif isinstance(op, SetIdentityMapAddr | CreateIrqchip):
            moment = _first_vcpu(scenario, begin)
            gpa = APIC_GPA if isinstance(op, CreateIrqchip) else op.gpa or IDENTITY_MAP_GPA
            if moment > origin:  # Else it is refused.
                yield type(op), moment, range(pages_of(gpa), pages_of(gpa) + 1)


def _first_vcpu(scenario: Scenario, begin: int) -> int:
    """Return the index of the operation that creates the first vCPU, or whose survey does."""
    for step in steps(scenario, _ANYWHERE):
        if step.origin >= begin and isinstance(step.operation, CreateVcpu | Touch | Sweep):
            return step.origin
    return len(scenario.operations)


def clears_into_a_huge_page(scenario: Scenario) -> bool:
    """Whether a clear of an initially set log ends, in some word, at a huge page's first page."""
    operations = scenario.operations
    enabled = any(
        isinstance(op, EnableCap)
        and op.cap == "MANUAL_DIRTY_LOG_PROTECT2"
        and bool(op.argument & DirtyLogManual.INITIALLY_SET)
        for op in operations
    )
    if not enabled or not any(each.kind in ("thp", "hugetlb") for each in scenario.mappings):
        return False
    bases: dict[int, set[int]] = {}
    for op in operations:
        if isinstance(op, SetUserMemoryRegion) and op.memory_size:
            bases.setdefault(op.slot, set()).add(pages_of(op.guest_phys_addr))
    return any(
        _ends_in_first_page(op, base)
        for op in operations
        if isinstance(op, ClearDirtyLog)
        for base in bases.get(op.slot, ())
    )


def is_log_read(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether this reads a dirty log."""
    return isinstance(op, GetDirtyLog)


def _ends_in_first_page(op: ClearDirtyLog, base_gfn: int) -> bool:
    """Whether the pages cleared of some 64-page word end with the first page of a huge page."""
    if op.pages == "all":
        within = range(op.first_page, op.first_page + op.num_pages)
        return any(
            (base_gfn + min(word + _WORD, within.stop) - 1) % _HUGE_PAGES == 0
            and min(word + _WORD, within.stop) - word > 1
            for word in within[::_WORD]
        )
    words: dict[int, list[int]] = {}
    for page in op.pages:
        words.setdefault(page // _WORD, []).append(page)
    return any(
        len(pages) > 1 and (base_gfn + max(pages)) % _HUGE_PAGES == 0 for pages in words.values()
    )


def reads_private_memory_over_mmio(scenario: Scenario) -> bool:
    """Whether private memory is touched at a gpa that was touched before it had a slot."""
    if not scenario.vm_type or not any(
        isinstance(op, SetMemoryAttributes) and op.attributes & ATTRIBUTE_PRIVATE
        for op in scenario.operations
    ):
        return False
    return any(
        is_touched_over_mmio(scenario, origin, op) for origin, op in enumerate(scenario.operations)
    )


def is_touched_over_mmio(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether a vCPU touches a page that it touched before the page's first slot was made."""
    if not isinstance(op, Touch):
        return False
    gfn = pages_of(op.gpa)
    made = next(
        (
            index
            for index, other in enumerate(scenario.operations[: origin + 1])
            if isinstance(other, SetUserMemoryRegion) and gfn in gfns_of(other)
        ),
        None,
    )
    return made is not None and _is_touched(scenario, gfn, op.vcpu, 0, range(-1, made))


def switches_spaces_over_mmio(scenario: Scenario) -> bool:
    """Whether a vCPU in SMM touches a page again whose slot in as_id 1 was made meanwhile."""
    return "smm" in scenario.needs and any(
        is_touched_over_mmio_in_smm(scenario, origin, op)
        for origin, op in enumerate(scenario.operations)
    )


def is_touched_over_mmio_in_smm(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such a touch."""
    if not isinstance(op, Touch) or op.as_id != SMM:
        return False
    gfn = pages_of(op.gpa)
    made = [
        index
        for index, other in enumerate(scenario.operations[: origin + 1])
        if isinstance(other, SetUserMemoryRegion)
        and as_id_of(other.slot) == SMM
        and gfn in gfns_of(other)
    ]
    return bool(made) and _is_touched(scenario, gfn, op.vcpu, SMM, range(-1, made[-1]))


def writes_where_mmio_was(scenario: Scenario) -> bool:
    """Whether a guest writes to a READONLY slot on a page that it has met as MMIO.

    True only where some host memory is missing; else there is nothing to see of it.
    """
    calls = [op for op in scenario.operations if isinstance(op, SetUserMemoryRegion)]
    absent = {each.name for each in scenario.mappings if each.kind == "unmapped"}
    is_missing = any(isinstance(op, ChangeHostMemory) for op in scenario.operations) or any(
        isinstance(call.userspace_addr, int) or call.userspace_addr.mapping in absent
        for call in calls
    )
    if not is_missing or not any(call.flags & READONLY for call in calls):
        return False
    return any(
        is_written_where_mmio_was(scenario, step.origin, step.operation)
        for step in steps(scenario, _ANYWHERE)
    )


def is_written_where_mmio_was(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this writes through a READONLY slot that was made since the vCPU touched the page."""
    if not isinstance(op, Touch | Sweep) or op.access != "write":
        return False
    gfns = range(pages_of(op.gpa), pages_of(access_end(op) - 1) + 1)
    return any(
        isinstance(call, SetUserMemoryRegion)
        and call.flags & READONLY
        and as_id_of(call.slot) == op.as_id
        and any(
            gfn in gfns_of(call) and _is_touched(scenario, gfn, op.vcpu, op.as_id, range(-1, made))
            for gfn in gfns
        )
        for made, call in enumerate(scenario.operations[: origin + 1])
    )


_ENTER_A_GUEST = (PreFaultMemory, Touch, Sweep, Instruction, Execute, Start, Race, Churn)
"""Operations that load a root of page tables."""

_CHANGE_SLOTS = (SetUserMemoryRegion, Race, Churn)


def prefaults_after_a_deletion(scenario: Scenario) -> bool:
    """Whether KVM_PRE_FAULT_MEMORY comes after a vCPU ran and slots changed since, or meanwhile."""
    return any(
        is_prefault_after_a_deletion(scenario, origin, op)
        for origin, op in enumerate(scenario.operations)
    )


def is_prefault_after_a_deletion(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this pre-faults after a region call, which may have made the root obsolete."""
    if isinstance(op, Race):
        programs = [step for guest in op.guests for step in guest.program]
        if not any(isinstance(step, PreFaultMemory) for step in programs):
            return False
        calls = [each for host in op.hosts for each in host.operations]
        if any(isinstance(each, SetUserMemoryRegion) for each in calls):
            return True
    elif not isinstance(op, PreFaultMemory):
        return False
    before = scenario.operations[:origin]
    changed = [index for index, each in enumerate(before) if isinstance(each, _CHANGE_SLOTS)]
    earlier = before[: changed[-1] if changed else 0]
    return any(isinstance(each, _ENTER_A_GUEST) for each in earlier)


def stores_a_table(scenario: Scenario) -> bool:
    """Whether a guest stores a descriptor table register or FPU state outside memory."""
    return any(is_table_stored(scenario, i, op) for i, op in enumerate(scenario.operations))


def is_table_stored(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such an instruction."""
    return (
        isinstance(op, Instruction)
        and INSTRUCTIONS[op.name].cannot_exit
        and _leaves_memory(scenario, origin, op)
    )


def pushes_all(scenario: Scenario) -> bool:
    """Whether a guest executes pusha with its stack outside memory."""
    return any(is_all_pushed(scenario, i, op) for i, op in enumerate(scenario.operations))


def is_all_pushed(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such an instruction."""
    return (
        isinstance(op, Instruction) and op.name == "pusha" and _leaves_memory(scenario, origin, op)
    )


def pops_all(scenario: Scenario) -> bool:
    """Whether a guest executes popa with its stack outside memory."""
    return any(is_all_popped(scenario, i, op) for i, op in enumerate(scenario.operations))


def is_all_popped(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such an instruction."""
    return (
        isinstance(op, Instruction)
        and op.name == "popa"
        and _leaves_memory(scenario, origin, op, write=False)
    )


def takes_down(scenario: Scenario) -> bool:
    """Whether a guest executes rep ins, downward, outside memory."""
    return any(is_taken_down(scenario, i, op) for i, op in enumerate(scenario.operations))


def is_taken_down(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such an instruction."""
    return (
        isinstance(op, Instruction)
        and (op.name, op.down) == ("rep-ins", True)
        and _leaves_memory(scenario, origin, op)
    )


def _leaves_memory(scenario: Scenario, origin: int, op: Instruction, write: bool = True) -> bool:
    """Whether a byte that an instruction accesses may lie outside all slots.

    If it may ``write``, outside all writable ones. True, too, where a second call for a slot may
    have been refused, moved it or deleted it: then it is not known here where the slots are.
    """
    calls = [each for each in scenario.operations[:origin] if isinstance(each, SetUserMemoryRegion)]
    if len({call.slot for call in calls}) < len(calls):
        return True
    (gpa, length), *_ = accessed(op)
    return not is_held(scenario, origin, gpa, length, write)


def enters_narrowly(scenario: Scenario) -> bool:
    """Whether a guest executes a 16-bit enter, whose stack pointer may be wider."""
    return any(is_entered_narrowly(scenario, -1, op) for op in scenario.operations)


def is_entered_narrowly(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether this is such an instruction."""
    return isinstance(op, Instruction) and (op.name, op.width) == ("enter", 2)


_LEAVE_ROOTS = (
    *(ChangeHostMemory, HostWrite, Inspect, GetDirtyLog, CreateVcpu),
    *(CoalesceMmio, CollectMmio, IoEventFd, KvmclockCtrl),
)
"""Operations that run no guest and keep the roots of a vCPU's page tables valid."""


def misses_a_root(scenario: Scenario) -> bool:
    """Whether a vCPU starts with page tables that it found without memory before."""
    return any(_starts_after_a_miss(scenario))


def is_started_after_a_miss(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such a start."""
    return isinstance(op, Start) and origin in _starts_after_a_miss(scenario)


def _starts_after_a_miss(scenario: Scenario) -> Iterator[int]:
    """Yield each start of a vCPU whose page tables had no memory at its last start, and have now.

    In between, slots were only created, or else only pages of the changed slot were zapped.
    """
    slots = Slots()
    missed: dict[int, int | None] = {}
    zaps_all = True
    for origin, op in enumerate(scenario.operations):
        if isinstance(op, SetUserMemoryRegion):
            is_old = slots.has(op.slot)
            if slots.change(op) and is_old and zaps_all:
                missed.clear()
        elif isinstance(op, Start):
            is_there = slots.holds(pages_of(op.tables or 0))
            if is_there and op.tables is not None and missed.get(op.vcpu) == op.tables:
                yield origin  # The vCPU still does not find them.
            else:
                missed[op.vcpu] = None if is_there else op.tables
        elif isinstance(op, EnableCap):
            zaps_all &= (op.cap, op.argument) != ("DISABLE_QUIRKS2", Quirk.SLOT_ZAP_ALL)
        elif isinstance(op, Touch | Sweep | Execute | Instruction):
            missed.pop(op.vcpu, None)
        elif not isinstance(op, _LEAVE_ROOTS):
            missed.clear()


def puts_a_bus_out_of_order(scenario: Scenario) -> bool:
    """Whether a device of length 0 lies where another one ends."""
    ranges = [
        (op.gpa, op.size if isinstance(op, CoalesceMmio) else op.length)
        for op in scenario.operations
        if isinstance(op, CoalesceMmio | IoEventFd)
    ]
    starts = {gpa for gpa, length in ranges if not length}
    return any(length and gpa + length in starts for gpa, length in ranges)


def is_write(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether a guest writes with one touch."""
    return _writes(op)


_HALF_A_RING = 85
"""A ring of coalesced MMIO with this many entries counted as full; it has room for 170."""


def fills_half_a_ring(scenario: Scenario) -> bool:
    """Whether a guest writes so often that a ring of coalesced MMIO may be half full."""
    is_kept = any(isinstance(op, CoalesceMmio) for op in scenario.operations)
    return is_kept and sum(map(_writes, scenario.operations)) > _HALF_A_RING


def is_write_to_half_a_ring(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether a guest writes when the ring may be half full."""
    before = scenario.operations[: max(origin, 0)]
    return _writes(op) and sum(map(_writes, before)) >= _HALF_A_RING


def _writes(op: AnyOperation) -> bool:
    return isinstance(op, Touch) and op.access == "write"


def _is_touched(scenario: Scenario, gfn: int, vcpu: int, as_id: int, origins: range) -> bool:
    """Whether a vCPU touches a page in one of these operations, or in a survey after one."""
    for step in steps(scenario, _ANYWHERE):
        if step.origin >= origins.stop:
            return False
        op = step.operation
        if (
            isinstance(op, Touch | Sweep)
            and (op.vcpu, op.as_id) == (vcpu, as_id)
            and pages_of(op.gpa) <= gfn <= pages_of(access_end(op) - 1)
        ):
            return True
    return False


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
