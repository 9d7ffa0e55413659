"""Asks a kernel what it can do: by KVM_CHECK_EXTENSION, and by trying."""

from pathlib import Path

from kvm_abi.raw import KvmError
from kvm_abi.uapi import Cap, DirtyLogManual
from vmm.execution.failing import can_fail_allocations
from vmm.execution.probe.dirty import least_ring_bytes, reads_make_dirty
from vmm.execution.probe.internal import (
    makes_apic_slot,
    makes_identity_map_slot,
    makes_tss_slot,
)
from vmm.execution.probe.reach import touch_limit
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.kvm.vm import Vm
from vmm.scenario.features import Features
from vmm.scenario.operations import PAGE_SIZE_BYTES, SMM

_LEAST_GFN_BITS = 20  # 4 GiB: every x86 processor maps that much
_MOST_GFN_BITS = 52


def probe_features(kvm: Kvm) -> Features:
    """Return what the kernel of ``kvm`` and this process can do.

    Makes a VM of its own for what has to be tried.
    """
    with HostMapping.anonymous(PAGE_SIZE_BYTES) as page, kvm.create_vm() as vm:
        has = vm.check_extension
        last_gfn = _last_gfn(vm, page)
        return Features(
            nr_memslots=has(Cap.NR_MEMSLOTS),
            address_spaces=max(1, has(Cap.MULTI_ADDRESS_SPACE)),
            smm=bool(has(Cap.X86_SMM)) and has(Cap.MULTI_ADDRESS_SPACE) > SMM,
            readonly_mem=bool(has(Cap.READONLY_MEM)),
            sync_mmu=bool(has(Cap.SYNC_MMU)),
            user_memory2=bool(has(Cap.USER_MEMORY2)),
            guest_memfd=bool(has(Cap.GUEST_MEMFD)),
            failing_allocations=can_fail_allocations(),
            guest_memfd_flags=has(Cap.GUEST_MEMFD_FLAGS),
            vm_types=has(Cap.VM_TYPES) or 1,
            memory_attributes=kvm.check_extension(Cap.MEMORY_ATTRIBUTES),
            pre_fault=bool(has(Cap.PRE_FAULT_MEMORY)),
            manual_dirty_log=bool(has(Cap.MANUAL_DIRTY_LOG_PROTECT2)),
            dirty_log_initially_set=bool(
                has(Cap.MANUAL_DIRTY_LOG_PROTECT2) & DirtyLogManual.INITIALLY_SET
            ),
            dirty_ring_bytes=least_ring_bytes(kvm),
            dirty_ring_max_bytes=has(Cap.DIRTY_LOG_RING),
            dirty_ring_acq_rel=bool(has(Cap.DIRTY_LOG_RING_ACQ_REL)),
            reads_make_dirty=reads_make_dirty(kvm),
            quirks=has(Cap.DISABLE_QUIRKS2),
            last_gfn=last_gfn,
            touch_limit=touch_limit(kvm, last_gfn),
            irqchip=bool(has(Cap.IRQCHIP)),
            internal_tss=makes_tss_slot(kvm),
            internal_identity=makes_identity_map_slot(kvm),
            internal_apic=makes_apic_slot(kvm),
            zero_page=_can_map_zero(),
            hugetlb_pages=_free_huge_pages(),
        )


def _last_gfn(vm: Vm, page: HostMapping) -> int:
    """Return the highest gfn that a slot may hold: kernels map a power of two of them."""
    for bits in range(_MOST_GFN_BITS, _LEAST_GFN_BITS, -1):
        gfn = (1 << bits) - 1
        try:
            vm.set_user_memory_region(
                0, 0, gfn * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES, HostAddress(page, 0)
            )
        except KvmError:
            continue
        vm.set_user_memory_region(0, 0, 0, 0, 0)
        return gfn
    return (1 << _LEAST_GFN_BITS) - 1


def _can_map_zero() -> bool:
    try:
        HostMapping.at_zero(PAGE_SIZE_BYTES).close()
    except OSError:
        return False
    return True


def _free_huge_pages() -> int:
    try:
        return int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    except (OSError, ValueError):
        return 0
