"""Which features the operations of a scenario use, whatever its ``needs`` say."""

from collections.abc import Iterator
from typing import assert_never

from kvm_abi.uapi import DirtyLogManual
from vmm.scenario import operations as ops
from vmm.scenario.operations import SMM, AnyOperation, Scenario
from vmm.scenario.slots import as_id_of

_OF_CHURN = {
    "refused-bindings": ("user_memory2", "guest_memfd"),
    "refused-eventfds": ("ioeventfd",),
    "failing-changes": ("failing_allocations",),
}


def used_needs(scenario: Scenario) -> frozenset[str]:
    """Return those of ``needs`` without which it would be a different scenario."""
    needs = {need for operation in scenario.operations for need in _of_operation(operation)}
    kinds = {mapping.kind for mapping in scenario.mappings}
    if scenario.vm_type:
        needs.add("sw_protected")
    if "zero" in kinds:
        needs.add("zero_page")
    if "pfnmap" in kinds:
        needs.add("pfnmap")
    if not kinds.isdisjoint(ops.HUGE_KINDS):
        needs.add("hugetlb_pages")
    return frozenset(needs)


def _of_operation(op: AnyOperation) -> Iterator[str]:
    if isinstance(op, ops.GuestOperation):
        if op.as_id == SMM or (isinstance(op, ops.Start) and op.smi):
            yield "smm"
        if isinstance(op, ops.Start) and op.paging != "long":
            yield "starts_32_bit"
    elif isinstance(op, ops.HostOperation):
        yield from _of_host(op)
    elif isinstance(op, ops.DirtyOperation):
        yield from _of_dirty_pages(op)
    elif isinstance(op, ops.MemfdOperation):
        yield from _of_memfd(op)
    elif isinstance(op, ops.InternalOperation):
        yield from _of_internal_slots(op)
    elif isinstance(op, ops.DeviceOperation):
        yield from _of_device(op)
    elif isinstance(op, ops.ClockOperation):
        yield from _of_clock(op)
    elif isinstance(op, ops.VapicOperation):
        pass  # The creation of the local APIC has the need.
    elif isinstance(op, ops.VmOperation):
        yield from _of_vm(op)
    else:
        match op:
            case ops.SetUserMemoryRegion():
                yield from _of_region(op)
            case ops.SetMemoryAttributes():
                yield "memory_attributes"
            case ops.PreFaultMemory():
                yield "pre_fault"
            case ops.Race():
                yield from _of_race(op)
            case _:
                assert_never(op)


def _of_host(op: ops.HostOperation) -> Iterator[str]:
    match op:
        case ops.ChangeHostMemory():
            yield "sync_mmu"
            match op.how:
                case "collapse":
                    yield "collapse"
                case "merge":
                    yield "ksm"
                case "fetch_later" | "guard":
                    yield "userfaultfd"
                case "fork":
                    yield "process_files"
        case ops.HostWrite() | ops.Inspect():
            pass
        case _:
            assert_never(op)


def _of_dirty_pages(op: ops.DirtyOperation) -> Iterator[str]:
    match op:
        case ops.ClearDirtyLog():
            yield "manual_dirty_log"
        case ops.HarvestDirtyRing() | ops.ResetDirtyRings():
            yield "dirty_ring_bytes"
        case ops.GetDirtyLog() | ops.MapVcpuPages():
            pass
        case _:
            assert_never(op)


def _of_memfd(op: ops.MemfdOperation) -> Iterator[str]:
    match op:
        case ops.CreateGuestMemfd():
            yield "guest_memfd"
            if op.flags & ops.MEMFD_MMAP:
                yield "guest_memfd_mmap"
            if op.flags & ops.MEMFD_INIT_SHARED:
                yield "guest_memfd_shared"
        case (
            ops.CloseGuestMemfd()
            | ops.MapGuestMemfd()
            | ops.PunchGuestMemfd()
            | ops.ResizeGuestMemfd()
        ):
            pass  # The creation of the guest_memfd has the need.
        case _:
            assert_never(op)


def _of_internal_slots(op: ops.InternalOperation) -> Iterator[str]:
    match op:
        case ops.SetTssAddr():
            yield "internal_tss"
        case ops.SetIdentityMapAddr():
            yield "internal_identity"
        case ops.CreateIrqchip():
            yield from ("irqchip", "internal_apic")
        case ops.UnmapInternalSlots():
            yield "process_files"
        case ops.CreateVcpu() | ops.SetApicBase():
            pass
        case _:
            assert_never(op)


def _of_device(op: ops.DeviceOperation) -> Iterator[str]:
    match op:
        case ops.CoalesceMmio():
            yield "coalesced_mmio"
            if op.pio:
                yield "coalesced_pio"
        case ops.IoEventFd():
            yield "ioeventfd"
        case ops.SetCoalescedRing():
            yield "coalesced_mmio"
        case ops.CollectMmio():
            pass
        case _:
            assert_never(op)


def _of_clock(op: ops.ClockOperation) -> Iterator[str]:
    match op:
        case ops.SetClockMsr():
            yield "steal_time" if op.clock == "steal_time" else "kvmclock"
        case ops.KvmclockCtrl():
            yield "kvmclock_ctrl"
        case _:
            assert_never(op)


def _of_vm(op: ops.VmOperation) -> Iterator[str]:
    match op:
        case ops.EnableCap():
            yield from _of_cap(op)
        case ops.Lives():
            yield "process_files"
        case ops.Churn():
            yield from ("process_files", *_OF_CHURN.get(op.what, ()))
        case ops.SetNrMmuPages() | ops.NewVm() | ops.SwitchVm() | ops.CloseVm():
            pass
        case _:
            assert_never(op)


def _of_race(op: ops.Race) -> Iterator[str]:
    for host in op.hosts:
        for action in host.operations:
            yield from _of_operation(action)
    for guest in op.guests:
        for step in guest.program:
            yield from _of_operation(step)


def _of_region(op: ops.SetUserMemoryRegion) -> Iterator[str]:
    if op.flags & ops.READONLY:
        yield "readonly_mem"
    if as_id_of(op.slot) == SMM:
        yield "smm"
    if op.fail_nth:
        yield "failing_allocations"
    if isinstance(op, ops.SetUserMemoryRegion2):
        yield "user_memory2"
        if op.flags & ops.GUEST_MEMFD:
            yield "guest_memfd"


def _of_cap(op: ops.EnableCap) -> Iterator[str]:
    match op.cap:
        case "MANUAL_DIRTY_LOG_PROTECT2":
            yield "manual_dirty_log"
            if op.argument & DirtyLogManual.INITIALLY_SET:
                yield "dirty_log_initially_set"
        case "DIRTY_LOG_RING":
            yield "dirty_ring_bytes"
        case "DIRTY_LOG_RING_ACQ_REL":
            yield from ("dirty_ring_bytes", "dirty_ring_acq_rel")
        case "DISABLE_QUIRKS2":
            yield "slot_zap_all_quirk"
