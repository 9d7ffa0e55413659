"""Finds out which internal slots a kernel creates: a user's slot over one of them is EEXIST."""

import errno

from kvm_abi.raw import KvmError
from kvm_abi.uapi import APIC_GPA, IDENTITY_MAP_GPA, USUAL_TSS_GPA, Cap
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.kvm.vm import Vm
from vmm.scenario.operations import PAGE_SIZE_BYTES


def makes_tss_slot(kvm: Kvm) -> bool:
    """Return whether KVM_SET_TSS_ADDR creates an internal slot."""
    with kvm.create_vm() as vm:
        if not vm.check_extension(Cap.SET_TSS_ADDR):
            return False
        vm.set_tss_addr(USUAL_TSS_GPA)
        return _is_taken(vm, USUAL_TSS_GPA)


def makes_identity_map_slot(kvm: Kvm) -> bool:
    """Return whether the first vCPU creates an internal slot for the identity map."""
    with kvm.create_vm() as vm:
        if not vm.check_extension(Cap.SET_IDENTITY_MAP_ADDR):
            return False
        vm.set_identity_map_addr(IDENTITY_MAP_GPA)
        vm.create_vcpu(0)
        return _is_taken(vm, IDENTITY_MAP_GPA)


def makes_apic_slot(kvm: Kvm) -> bool:
    """Return whether the first vCPU with an in-kernel local APIC creates a slot for its page."""
    with kvm.create_vm() as vm:
        if not vm.check_extension(Cap.IRQCHIP):
            return False
        vm.create_irqchip()
        vm.create_vcpu(0)
        return _is_taken(vm, APIC_GPA)


def _is_taken(vm: Vm, gpa: int) -> bool:
    with HostMapping.anonymous(PAGE_SIZE_BYTES) as page:
        try:
            vm.set_user_memory_region(0, 0, gpa, PAGE_SIZE_BYTES, HostAddress(page, 0))
        except KvmError as error:
            if error.errno != errno.EEXIST:
                raise
            return True
        vm.set_user_memory_region(0, 0, 0, 0, 0)
        return False
