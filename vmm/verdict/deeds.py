"""What a scenario does that a known issue depends on, told from its operations alone.

``meets`` functions say whether a scenario does it at all, ``at`` functions whether an operation,
which is the one with the index ``origin`` or follows it, comes after all that it takes.
"""

from collections.abc import Iterator

from kvm_abi.uapi import APIC_GPA, IDENTITY_MAP_GPA, TSS_PAGES, DirtyLogManual, Quirk
from vmm.scenario.instructions import INSTRUCTIONS, accessed
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    SMM,
    AnyOperation,
    ChangeHostMemory,
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
"""The first gpa that no x86 guest reaches: with this limit a plan leaves no touch out."""


def overruns_a_ring(scenario: Scenario) -> bool:
    """Whether a vCPU writes more, in one KVM_RUN, than its dirty ring has entries."""
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
    """Whether a dirty ring is harvested."""
    return isinstance(op, HarvestDirtyRing)


def _written(batch: list[AnyOperation]) -> int:
    """Return how many entries of a ring the operations of one KVM_RUN may take."""
    pages = {pages_of(op.gpa) for op in batch if isinstance(op, Touch) and op.access == "write"}
    swept = sum(op.count for op in batch if isinstance(op, Sweep) and op.access == "write")
    return len(pages) + swept


def binds_beyond_all(scenario: Scenario) -> bool:
    """Whether a slot is bound to a place in a guest_memfd whose end is not below 2^63."""
    return any(is_bound_beyond_all(scenario, -1, op) for op in scenario.operations)


def is_bound_beyond_all(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether this is such a call."""
    return (
        isinstance(op, SetUserMemoryRegion2)
        and bool(op.flags & GUEST_MEMFD)
        and op.guest_memfd_offset < 1 << 63 <= op.guest_memfd_offset + op.memory_size
    )


def has_no_room_for_internal_slots(scenario: Scenario) -> bool:
    """Whether a kernel may find something where it wants to make a slot for itself."""
    made = list(_internal_slots(scenario))
    return any(
        any(_overlap(place, users) for users in _users_before(scenario, moment))
        # Another place for the same slot is refused before memory is mapped.
        or any(_overlap(place, other) and of is not what for of, _, other in made[:number])
        for number, (what, moment, place) in enumerate(made)
    )


def _users_before(scenario: Scenario, moment: int) -> Iterator[range]:
    """Yield what calls ask for before that moment, the last one first, in the same VM."""
    for op in reversed(scenario.operations[:moment]):
        if isinstance(op, NewVm):
            return
        if isinstance(op, SetUserMemoryRegion):
            yield gfns_of(op)


def is_close(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether the VM is closed, and what it has left behind is looked at."""
    return isinstance(op, CloseVm)


def _internal_slots(scenario: Scenario) -> Iterator[tuple[type[AnyOperation], int, range]]:
    """Yield (what a kernel makes a slot by, the index of the operation that does it, its gfns)."""
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
    """Return the operation that makes a vCPU first, or brings a survey that does."""
    for step in steps(scenario, _ANYWHERE):
        if step.origin >= begin and isinstance(step.operation, CreateVcpu | Touch | Sweep):
            return step.origin
    return len(scenario.operations)


def clears_into_a_huge_page(scenario: Scenario) -> bool:
    """Whether a word of an initially set log is cleared up to the first page of a huge page."""
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
    """Whether a dirty log is read."""
    return isinstance(op, GetDirtyLog)


def _ends_in_first_page(op: ClearDirtyLog, base_gfn: int) -> bool:
    """Whether what is cleared of some word ends with the first page of a huge page."""
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
    """Whether private memory is touched at a gpa that was touched before there was a slot."""
    if not scenario.vm_type or not any(
        isinstance(op, SetMemoryAttributes) and op.attributes & ATTRIBUTE_PRIVATE
        for op in scenario.operations
    ):
        return False
    return any(
        is_touched_over_mmio(scenario, origin, op) for origin, op in enumerate(scenario.operations)
    )


def is_touched_over_mmio(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether a vCPU touches what it touched before the first slot that lies there."""
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
    """Whether as_id 1 changes where a vCPU in SMM has met MMIO, and it looks again."""
    return "smm" in scenario.needs and any(
        is_touched_over_mmio_in_smm(scenario, origin, op)
        for origin, op in enumerate(scenario.operations)
    )


def is_touched_over_mmio_in_smm(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether a vCPU in SMM touches a page again, whose slot in as_id 1 was made meanwhile."""
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


_ENTER_A_GUEST = (PreFaultMemory, Touch, Sweep, Instruction, Execute, Start)
"""What loads a root of page tables."""


def maps_ahead_after_a_deletion(scenario: Scenario) -> bool:
    """Whether memory is mapped ahead, a slot is deleted or moved, and memory is mapped again."""
    return any(
        is_mapped_ahead_after_a_deletion(scenario, origin, op)
        for origin, op in enumerate(scenario.operations)
    )


def is_mapped_ahead_after_a_deletion(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this maps memory ahead after a change of slots that makes roots obsolete."""
    if not isinstance(op, PreFaultMemory):
        return False
    before = scenario.operations[:origin]
    changed = [index for index, each in enumerate(before) if isinstance(each, SetUserMemoryRegion)]
    earlier = before[: changed[-1] if changed else 0]
    return any(isinstance(each, _ENTER_A_GUEST) for each in earlier)


def stores_a_table(scenario: Scenario) -> bool:
    """Whether a guest stores a descriptor table's register, or its state, where no memory is."""
    return any(is_table_stored(scenario, i, op) for i, op in enumerate(scenario.operations))


def is_table_stored(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such an instruction."""
    return (
        isinstance(op, Instruction)
        and INSTRUCTIONS[op.name].cannot_exit
        and _leaves_memory(scenario, origin, op)
    )


def pushes_all(scenario: Scenario) -> bool:
    """Whether a guest pushes all registers where there is no memory."""
    return any(is_all_pushed(scenario, i, op) for i, op in enumerate(scenario.operations))


def is_all_pushed(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such an instruction."""
    return (
        isinstance(op, Instruction) and op.name == "pusha" and _leaves_memory(scenario, origin, op)
    )


def pops_all(scenario: Scenario) -> bool:
    """Whether a guest pops all registers where there is no memory."""
    return any(is_all_popped(scenario, i, op) for i, op in enumerate(scenario.operations))


def is_all_popped(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such an instruction."""
    return (
        isinstance(op, Instruction)
        and op.name == "popa"
        and _leaves_memory(scenario, origin, op, write=False)
    )


def _leaves_memory(scenario: Scenario, origin: int, op: Instruction, write: bool = True) -> bool:
    """Whether a byte of an instruction's is not in a slot that stands as it was made.

    Where it may ``write``, that is in a writable slot.

    Where a call may have been refused, moved or deleted a slot, it may be.
    """
    calls = [each for each in scenario.operations[:origin] if isinstance(each, SetUserMemoryRegion)]
    if len({call.slot for call in calls}) < len(calls):
        return True
    (gpa, length), *_ = accessed(op)
    return not is_held(scenario, origin, gpa, length, write)


def enters_narrowly(scenario: Scenario) -> bool:
    """Whether a guest enters a procedure with 16 bits while its stack pointer has more."""
    return any(is_entered_narrowly(scenario, -1, op) for op in scenario.operations)


def is_entered_narrowly(_scenario: Scenario, _origin: int, op: AnyOperation) -> bool:
    """Whether this is such an instruction."""
    return isinstance(op, Instruction) and (op.name, op.width) == ("enter", 2)


_LEAVE_ROOTS = (
    *(ChangeHostMemory, HostWrite, Inspect, GetDirtyLog, CreateVcpu),
    *(CoalesceMmio, CollectMmio, IoEventFd, KvmclockCtrl),
)
"""Operations that run no guest, and after which a vCPU's page tables are where they were."""


def misses_a_root(scenario: Scenario) -> bool:
    """Whether a vCPU starts where its page tables were missed before."""
    return any(_starts_after_a_miss(scenario))


def is_started_after_a_miss(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such a start."""
    return isinstance(op, Start) and origin in _starts_after_a_miss(scenario)


def _starts_after_a_miss(scenario: Scenario) -> Iterator[int]:
    """Yield each start of a vCPU that met no memory where its tables are, and does now.

    Nothing but creations of slots has come between, or what zaps only pages of a slot, too.
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
                yield origin  # And it stays missed.
            else:
                missed[op.vcpu] = None if is_there else op.tables
        elif isinstance(op, EnableCap):
            zaps_all &= (op.cap, op.argument) != ("DISABLE_QUIRKS2", Quirk.SLOT_ZAP_ALL)
        elif isinstance(op, Touch | Sweep | Execute | Instruction):
            missed.pop(op.vcpu, None)
        elif not isinstance(op, _LEAVE_ROOTS):
            missed.clear()


def puts_a_bus_out_of_order(scenario: Scenario) -> bool:
    """Whether a device of length 0 is where another one ends."""
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
"""So many writes in the ring of coalesced MMIO were taken for 170, which it has room for."""


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
    """Whether a vCPU touches a page in one of these operations, or in a survey after them."""
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
