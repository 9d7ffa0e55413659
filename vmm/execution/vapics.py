"""The host's calls for what of a vCPU's interrupts is in guest memory."""

from kvm_abi.raw import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.scenario.history import AnyOutcome, Done, MsrsSet, Refused
from vmm.scenario.operations import PageMsr, SetApic, SetPageMsr, SetVapicAddr, VapicOperation
from vmm.scenario.vapic_operations import enabling_bits

_MSRS: dict[PageMsr, int] = {
    "pv_eoi": 0x4B56_4D04,
    "assist_page": 0x4000_0073,
    "async_pf": 0x4B56_4D02,
}


def of_vapic(vcpu: Vcpu, op: VapicOperation) -> AnyOutcome:
    """Issue KVM_SET_VAPIC_ADDR, KVM_SET_LAPIC or KVM_SET_MSRS."""
    try:
        match op:
            case SetVapicAddr():
                vcpu.set_vapic_addr(op.gpa)
            case SetApic():
                vcpu.set_apic(enabled=op.enabled, priority=op.priority)
            case SetPageMsr():
                data = op.gpa | enabling_bits(op.msr) if op.on else 0
                return MsrsSet(vcpu.set_msr(_MSRS[op.msr], data))
    except KvmError as error:
        return Refused(error.errno or 0)
    return Done()
