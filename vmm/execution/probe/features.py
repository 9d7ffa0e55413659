"""Probes a kernel's features with KVM_CHECK_EXTENSION, and by trying."""

import errno
from collections.abc import Callable
from pathlib import Path

import msgspec

from kvm_abi import mman
from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import Advice, Cap, ParavirtualFeature, VmType
from vmm.execution.failing import can_fail_allocations
from vmm.execution.leftovers import can_look_at_itself
from vmm.execution.probe.denials import check_denials
from vmm.execution.probe.dirty import check_ring_mapping, least_ring_bytes, reads_make_dirty
from vmm.execution.probe.emulation import (
    emulates_on_request,
    emulates_real_mode,
    starts_in_32_bit_mode,
)
from vmm.execution.probe.foreign import check_foreign
from vmm.execution.probe.internal import (
    makes_apic_slot,
    makes_identity_map_slot,
    makes_tss_slot,
)
from vmm.execution.probe.offers import check_offers
from vmm.execution.probe.reach import REACH_LIMIT_S, touch_limit
from vmm.execution.probe.registers import check_registers, check_shared_memory
from vmm.execution.probe.stops import check_stops
from vmm.execution.samepages import merges_pages
from vmm.kvm.memory import HUGE_PAGE_BYTES, HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.kvm.vm import Vm
from vmm.scenario.features import Features, PerVm, answered, impossible
from vmm.scenario.operations import PAGE_SIZE_BYTES, SMM
from vmm.scenario.slots import NO_LAST_GFN

_LEAST_GFN_BITS = 20  # 4 GiB: every x86 processor maps that much
_MOST_GFN_BITS = 52


def probe_features(
    kvm: Kvm,
    begin: Callable[[str], object] = lambda step: None,
    reach_limit_s: float = REACH_LIMIT_S,
) -> Features:
    """Return what the kernel that ``kvm`` was opened on, and this process, can do.

    Creates VMs for what has to be tried; ``begin`` gets the name of each step. Raises `KvmError`
    and `WrongAnswerError`, also for a plain create, touch or delete that goes wrong.
    """
    features = _probed(kvm, begin, reach_limit_s)
    # Last, so that a call that is wrong for its own process, too, is named as that.
    begin("a forked child makes calls on a VM")
    check_foreign(kvm)
    return features


def _probed(kvm: Kvm, begin: Callable[[str], object], reach_limit_s: float) -> Features:
    begin("slots are created and deleted, to find the last gfn")
    with HostMapping.anonymous(PAGE_SIZE_BYTES) as page, kvm.create_vm() as vm:
        has = vm.check_extension
        says = _says(has)
        last_gfn = _last_gfn(vm, page, kvm.supported_gpa_bits())
        _check(kvm, begin)
        begin("dirty rings of all sizes are enabled")
        ring_bytes = least_ring_bytes(kvm)
        if ring_bytes:
            check_ring_mapping(kvm, ring_bytes)
        begin("a page is read by a guest, and its dirty log looked at")
        dirty_by_reading = reads_make_dirty(kvm)
        begin("a guest reads as far as it reaches")
        limit = touch_limit(kvm, last_gfn, reach_limit_s)
        begin("a page is read by a 64-bit guest, and its dirty log looked at")
        dirty_by_reading = dirty_by_reading or reads_make_dirty(kvm, limit)
        begin("a vCPU is stopped by hlt, and by immediate_exit")
        check_stops(kvm)
        begin("slots are created where the kernel may have its own")
        internal = makes_tss_slot(kvm), makes_identity_map_slot(kvm), makes_apic_slot(kvm)
        begin("a guest in real mode executes what only a processor can")
        emulated = emulates_real_mode(kvm)
        begin("KVM is asked to emulate an instruction")
        forced_emulation = emulates_on_request(reach_limit_s)
        begin("a guest runs in 32-bit mode with page tables")
        starts_32_bit = starts_in_32_bit_mode(reach_limit_s)
        begin("a VM with private memory is created")
        protected = _protected(kvm, has(Cap.VM_TYPES))
        offers = kvm.paravirtual_features()
        tried = msgspec.structs.replace(
            says,
            kvmclock=bool(offers & 1 << ParavirtualFeature.CLOCKSOURCE2),
            steal_time=bool(offers & 1 << ParavirtualFeature.STEAL_TIME),
            smm=bool(has(Cap.X86_SMM)) and has(Cap.MULTI_ADDRESS_SPACE) > SMM,
            vm_types=has(Cap.VM_TYPES) or 1,
            memory_attributes=_attributes(kvm, protected),
            dirty_ring_bytes=ring_bytes,
            reads_make_dirty=dirty_by_reading,
            last_gfn=last_gfn,
            touch_limit=limit,
            internal_tss=internal[0],
            internal_identity=internal[1],
            internal_apic=internal[2],
            forced_emulation=forced_emulation,
            emulates_real_mode=emulated,
            starts_32_bit=starts_32_bit,
            protected=protected,
        )
        return _with_host(tried)


def _check(kvm: Kvm, begin: Callable[[str], object]) -> None:
    """Hold the kernel to what needs no slot: the memory a vCPU shares, registers, capabilities."""
    begin("the memory is read that a vCPU shares")
    check_shared_memory(kvm)
    begin("a vCPU's registers are set, and read back")
    check_registers(kvm)
    begin("all that KVM_CHECK_EXTENSION offers is enabled")
    check_offers(kvm)
    begin("all that KVM_CHECK_EXTENSION denies is tried")
    check_denials(kvm)


def _with_host(features: Features) -> Features:
    """Return features with what this process can do on this host, whatever KVM can."""
    return msgspec.structs.replace(
        features,
        failing_allocations=can_fail_allocations(),
        zero_page=_can_map_zero(),
        hugetlb_pages=_free_huge_pages(),
        collapse=_can_collapse(),
        ksm=merges_pages(),
        userfaultfd=mman.can_page(),
        pfnmap=_can_map_frames(),
        process_files=can_look_at_itself(),
    )


def _says(has: Callable[[Cap], int]) -> Features:
    """Return what KVM_CHECK_EXTENSION says, the basis for everything that is tried."""
    says = msgspec.structs.replace(
        answered(has, Features), address_spaces=max(1, has(Cap.MULTI_ADDRESS_SPACE))
    )
    for _, row, wrong in impossible(says):
        asked = f"KVM_CAP_{row.cap.name}" if row.cap else row.name
        raise WrongAnswerError("KVM_CHECK_EXTENSION", wrong, asked)
    return says


def _protected(kvm: Kvm, vm_types: int) -> PerVm | None:
    """Return what a VM with private memory answers for itself; None if there are no such VMs."""
    if not vm_types & 1 << VmType.SW_PROTECTED_VM:
        return None
    with kvm.create_vm(VmType.SW_PROTECTED_VM) as vm:
        has = vm.check_extension
        return msgspec.structs.replace(
            answered(has, PerVm), address_spaces=max(1, has(Cap.MULTI_ADDRESS_SPACE))
        )


def _attributes(kvm: Kvm, protected: PerVm | None) -> int:
    """Return the memory attributes that some type of VM supports.

    The answer for a VM is the one that counts: a system that says less hides nothing.
    """
    of_vms = 0 if protected is None else protected.memory_attributes
    return kvm.check_extension(Cap.MEMORY_ATTRIBUTES) | of_vms


def _last_gfn(vm: Vm, page: HostMapping, gpa_bits: int) -> int:
    """Return the highest gfn that a slot may hold: the number of gfns is a power of two.

    Before 86931ff7207b there was no limit: a slot may end at any gpa below 2^64. A gpa of guests
    has ``gpa_bits`` by the supported CPUID; slots may lie wherever guests have one.
    """
    least = max(gpa_bits - PAGE_SIZE_BYTES.bit_length() + 1, _LEAST_GFN_BITS)
    powers = range(_MOST_GFN_BITS - 1, least - 1, -1)
    tried = (NO_LAST_GFN, *((1 << bits) - 1 for bits in powers))
    for gfn in tried:
        try:
            vm.set_user_memory_region(
                0, 0, gfn * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES, HostAddress(page, 0)
            )
        except KvmError as error:
            if error.errno != errno.EINVAL or gfn == tried[-1]:
                raise  # Every kernel accepts the lowest ones, and answers EINVAL beyond its limit.
            continue
        vm.set_user_memory_region(0, 0, 0, 0, 0)
        return gfn
    raise AssertionError("the last try returns or raises")


def _can_map_zero() -> bool:
    try:
        HostMapping.at_zero(PAGE_SIZE_BYTES).close()
    except OSError:
        return False
    return True


def _can_collapse() -> bool:
    """Whether the kernel knows MADV_COLLAPSE; nothing is mapped at the address given."""
    try:
        mman.advise_memory(0, HUGE_PAGE_BYTES, Advice.COLLAPSE)
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


def _can_map_frames() -> bool:
    """Whether this process can map the page frames of a memfd."""
    try:
        file = HostMapping.memfd(PAGE_SIZE_BYTES)
    except OSError as error:
        if error.errno != errno.EFBIG:  # No file may be so large (ulimit -f).
            raise
        return False
    with file:
        try:
            HostMapping.pfnmap(file.fd, PAGE_SIZE_BYTES).close()
        except OSError:
            return False
    return True


def _free_huge_pages() -> int:
    try:
        return int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    except (OSError, ValueError):
        return 0
