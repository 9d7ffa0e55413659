"""Which features the operations of a scenario use, whatever its ``needs`` say."""

from collections.abc import Iterator
from typing import assert_never

from kvm_abi.uapi import DirtyLogManual
from vmm.scenario.operations import (
    GUEST_MEMFD,
    HUGE_KINDS,
    MEMFD_INIT_SHARED,
    MEMFD_MMAP,
    READONLY,
    SMM,
    AnyOperation,
    ChangeHostMemory,
    Churn,
    ClearDirtyLog,
    CloseGuestMemfd,
    CloseVm,
    CoalesceMmio,
    CollectMmio,
    CreateGuestMemfd,
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
    Lives,
    MapGuestMemfd,
    NewVm,
    PreFaultMemory,
    PunchGuestMemfd,
    Race,
    ResetDirtyRings,
    Scenario,
    SetClockMsr,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Start,
    Sweep,
    SwitchVm,
    Touch,
    UnmapInternalSlots,
)
from vmm.scenario.slots import as_id_of


def used_needs(scenario: Scenario) -> frozenset[str]:
    """Return those of ``needs`` without which it would be a different scenario."""
    needs = {need for operation in scenario.operations for need in _of_operation(operation)}
    kinds = {mapping.kind for mapping in scenario.mappings}
    if scenario.vm_type:
        needs.add("sw_protected")
    if "zero" in kinds:
        needs.add("zero_page")
    if not kinds.isdisjoint(HUGE_KINDS):
        needs.add("hugetlb_pages")
    return frozenset(needs)


def _of_operation(op: AnyOperation) -> Iterator[str]:
    match op:
        case SetUserMemoryRegion():
            yield from _of_region(op)
        case Touch(as_id=1) | Sweep(as_id=1) | Execute(as_id=1) | Instruction(as_id=1):
            yield "smm"
        case ChangeHostMemory():
            yield "sync_mmu"
            if op.how == "collapse":
                yield "collapse"
            elif op.how == "merge":
                yield "ksm"
            elif op.how in ("fetch_later", "guard"):
                yield "userfaultfd"
            elif op.how == "fork":
                yield "process_files"
        case CreateGuestMemfd(flags=flags):
            yield "guest_memfd"
            if flags & MEMFD_MMAP:
                yield "guest_memfd_mmap"
            if flags & MEMFD_INIT_SHARED:
                yield "guest_memfd_shared"
        case SetMemoryAttributes():
            yield "memory_attributes"
        case PreFaultMemory():
            yield "pre_fault"
        case ClearDirtyLog():
            yield "manual_dirty_log"
        case HarvestDirtyRing() | ResetDirtyRings():
            yield "dirty_ring_bytes"
        case EnableCap():
            yield from _of_cap(op)
        case CoalesceMmio():
            yield "coalesced_mmio"
        case IoEventFd():
            yield "ioeventfd"
        case SetClockMsr(clock=clock):
            yield "steal_time" if clock == "steal_time" else "kvmclock"
        case KvmclockCtrl():
            yield "kvmclock_ctrl"
        case CreateIrqchip():
            yield from ("irqchip", "internal_apic")
        case SetTssAddr():
            yield "internal_tss"
        case SetIdentityMapAddr():
            yield "internal_identity"
        case Race():
            for threads in (op.hosts, op.guests):
                for thread in threads:
                    parts = thread.operations if hasattr(thread, "operations") else thread.program
                    for part in parts:
                        yield from _of_operation(part)
        case Touch() | Sweep() | Execute() | Instruction() | Start():
            pass
        case HostWrite() | Inspect() | GetDirtyLog() | CollectMmio():
            pass
        case CloseGuestMemfd() | MapGuestMemfd() | PunchGuestMemfd():
            pass  # The creation of the guest_memfd has the need.
        case UnmapInternalSlots() | Lives() | Churn():
            yield "process_files"
        case CreateVcpu() | NewVm() | SwitchVm() | CloseVm():
            pass
        case _:
            assert_never(op)


def _of_region(op: SetUserMemoryRegion) -> Iterator[str]:
    if op.flags & READONLY:
        yield "readonly_mem"
    if as_id_of(op.slot) == SMM:
        yield "smm"
    if op.fail_nth:
        yield "failing_allocations"
    if isinstance(op, SetUserMemoryRegion2):
        yield "user_memory2"
        if op.flags & GUEST_MEMFD:
            yield "guest_memfd"


def _of_cap(op: EnableCap) -> Iterator[str]:
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
