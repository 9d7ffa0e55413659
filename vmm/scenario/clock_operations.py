"""Operations that make KVM itself write the time to guest memory, as data."""

from typing import Literal

from vmm.scenario.operation import Hex, Operation

Clock = Literal["wall_clock", "system_time", "steal_time"]


class SetClockMsr(Operation, frozen=True, tag="set_clock_msr", gc=False):
    """KVM_SET_MSRS on a vCPU: make KVM write ``clock`` to guest memory at ``gpa``, or stop it.

    KVM writes ``wall_clock`` at once, for the whole VM; ``system_time`` (kvmclock) and
    ``steal_time`` when the vCPU runs. The MSRs are MSR_KVM_WALL_CLOCK_NEW, ..._SYSTEM_TIME_NEW and
    ..._STEAL_TIME. KVM writes to as_id 0 only.

    >>> from vmm import operations
    >>> operations.SetClockMsr("steal_time", gpa=0x100440).on
    True
    """

    clock: Clock
    gpa: Hex
    on: bool = True
    vcpu: int = 0


class KvmclockCtrl(Operation, frozen=True, tag="kvmclock_ctrl", gc=False):
    """KVM_KVMCLOCK_CTRL: once the vCPU runs again, ``system_time`` says that it was paused.

    >>> from vmm import operations
    >>> operations.KvmclockCtrl(vcpu=1).vcpu
    1
    """

    vcpu: int = 0


ClockOperation = SetClockMsr | KvmclockCtrl
