"""The host's calls for the clocks that KVM writes to guest memory."""

from kvm_abi.raw import KvmError
from kvm_abi.uapi import ClockMsr
from vmm.kvm.vcpu import Vcpu
from vmm.scenario.history import Done, MsrsSet, Refused
from vmm.scenario.operations import Clock, SetClockMsr

_MSRS: dict[Clock, ClockMsr] = {
    "wall_clock": ClockMsr.WALL_CLOCK_NEW,
    "system_time": ClockMsr.SYSTEM_TIME_NEW,
    "steal_time": ClockMsr.STEAL_TIME,
}
_ENABLE = 1


def set_clock(vcpu: Vcpu, op: SetClockMsr) -> MsrsSet | Refused:
    """Issue KVM_SET_MSRS. The wall clock has no enable bit."""
    data = op.gpa if op.clock == "wall_clock" else op.gpa | _ENABLE
    try:
        return MsrsSet(vcpu.set_msr(_MSRS[op.clock], data if op.on else 0))
    except KvmError as error:
        return Refused(error.errno or 0)


def pause_clock(vcpu: Vcpu) -> Done | Refused:
    """Issue KVM_KVMCLOCK_CTRL."""
    try:
        vcpu.tell_of_pause()
    except KvmError as error:
        return Refused(error.errno or 0)
    return Done()
