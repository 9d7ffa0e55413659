"""Outcomes of the probe's touches of memory: faults, and answers against the rules."""

from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import Ioctl
from vmm.scenario import outcomewords
from vmm.scenario.endings import KERNEL_SHORT_NAMES
from vmm.scenario.history import AnyOutcome, Stopped

FAULT = "shutdown"
"""The reason for which a vCPU stops at a fault: our guests have no handlers."""


def wrong_touch(outcome: AnyOutcome, what: str) -> KvmError | WrongAnswerError:
    """Return what to raise for an outcome of a touch against the rules; ``what`` was done."""
    short = isinstance(outcome, Stopped) and KERNEL_SHORT_NAMES.get(outcome.reason)
    if short:
        return KvmError(short, Ioctl.RUN, None, 0)
    return WrongAnswerError("KVM_RUN", f"{outcomewords.outcome(outcome, ())}; {what}")


def is_fault(outcome: AnyOutcome) -> bool:
    """Whether the guest had a fault."""
    return isinstance(outcome, Stopped) and outcome.reason == FAULT
