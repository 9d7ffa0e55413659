"""Checks that a VM takes what KVM_CHECK_EXTENSION offers for it, whole: every bit, and the most."""

from kvm_abi.uapi import Cap, VmType
from vmm.kvm.system import Kvm
from vmm.kvm.vm import Vm
from vmm.scenario.operations import PAGE_SIZE_BYTES

_ENABLED_WHOLE = (Cap.MANUAL_DIRTY_LOG_PROTECT2, Cap.DISABLE_QUIRKS2, Cap.DIRTY_LOG_RING)
"""Capabilities whose answer, a mask or a size in bytes, is what KVM_ENABLE_CAP takes at most."""


def check_offers(kvm: Kvm) -> None:
    """Enable all that is offered, in a VM of each type that this program uses.

    Raises `KvmError` if the kernel refuses what it has offered.
    """
    with kvm.create_vm() as vm:
        for cap in _ENABLED_WHOLE:
            offered = vm.check_extension(cap)
            if offered:
                vm.enable_cap(cap, offered)
        _check_attributes(vm)
    if kvm.check_extension(Cap.VM_TYPES) & 1 << VmType.SW_PROTECTED_VM:
        with kvm.create_vm(VmType.SW_PROTECTED_VM) as vm:
            _check_attributes(vm)


def _check_attributes(vm: Vm) -> None:
    offered = vm.check_extension(Cap.MEMORY_ATTRIBUTES)
    if offered:
        vm.set_memory_attributes(0, PAGE_SIZE_BYTES, offered)
