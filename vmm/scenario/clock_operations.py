"""Operations on what KVM itself writes to guest memory: what time it is, as data."""

from typing import Literal

from vmm.scenario.operation import Hex, Operation

Clock = Literal["wall_clock", "system_time", "steal_time"]


class SetClockMsr(Operation, frozen=True, tag="set_clock_msr", gc=False):
    """KVM_SET_MSRS on a vCPU: KVM is to write ``clock`` to guest memory at ``gpa``, or to stop.

    ``wall_clock`` is written at once, for the whole VM; ``system_time`` (kvmclock) and
    ``steal_time`` when the vCPU runs. The MSRs are MSR_KVM_WALL_CLOCK_NEW, ..._SYSTEM_TIME_NEW and
    ..._STEAL_TIME. All of it goes to as_id 0.
    """

    clock: Clock
    gpa: Hex
    on: bool = True
    vcpu: int = 0


class KvmclockCtrl(Operation, frozen=True, tag="kvmclock_ctrl", gc=False):
    """KVM_KVMCLOCK_CTRL: ``system_time`` says that the vCPU was paused when it runs again."""

    vcpu: int = 0
