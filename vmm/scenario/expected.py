"""What the author of a scenario expects of an operation, and whether that happened."""

import errno
from typing import assert_never

import msgspec

from vmm.scenario import operations as ops
from vmm.scenario.history import (
    AnyOutcome,
    DirtyPages,
    Done,
    PreFaulted,
    Refused,
    RingsReset,
)
from vmm.scenario.operations import AnyOperation, Scenario

SUCCESS = "success"

_ERRNOS = frozenset(errno.errorcode.values())


_Call = (
    ops.SetUserMemoryRegion
    | ops.SetUserMemoryRegion2
    | ops.SetMemoryAttributes
    | ops.PreFaultMemory
    | ops.GetDirtyLog
    | ops.ClearDirtyLog
    | ops.ResetDirtyRings
    | ops.EnableCap
    | ops.SetNrMmuPages
    | ops.CreateGuestMemfd
    | ops.SetTssAddr
    | ops.SetIdentityMapAddr
    | ops.CreateIrqchip
    | ops.CreateVcpu
    | ops.CoalesceMmio
    | ops.IoEventFd
    | ops.KvmclockCtrl
    | ops.SetVapicAddr
)
"""Operations that are one call to KVM, which succeeds or fails with an errno."""

_NoCall = (
    ops.GuestOperation
    | ops.HostOperation
    | ops.HarvestDirtyRing
    | ops.MapVcpuPages
    | ops.CloseGuestMemfd
    | ops.MapGuestMemfd
    | ops.PunchGuestMemfd
    | ops.ResizeGuestMemfd
    | ops.SetApicBase
    | ops.SetApic
    | ops.UnmapInternalSlots
    | ops.CollectMmio
    | ops.SetCoalescedRing
    | ops.SetClockMsr  # KVM_SET_MSRS returns how many MSRs were set.
    | ops.SetPageMsr
    | ops.Race
    | ops.Lives
    | ops.Churn
    | ops.NewVm
    | ops.SwitchVm
    | ops.CloseVm
)


def _is_call(op: AnyOperation) -> bool:
    if isinstance(op, _Call):
        return True
    if isinstance(op, _NoCall):
        return False
    assert_never(op)


def expectation_problem(op: AnyOperation, is_raced: bool) -> str:
    """Return what is wrong with an operation's ``expect``; empty if nothing is."""
    if not op.expect:
        return ""
    if is_raced:
        return ".expect: calls of a race may be answered one way or the other; leave it out"
    if not _is_call(op):
        return ".expect: only calls to KVM answer with success or an errno"
    if op.expect != SUCCESS and op.expect not in _ERRNOS:
        return f'.expect: {op.expect!r} is neither "success" nor an errno\'s name, such as "EINVAL"'
    return ""


def answer(outcome: AnyOutcome) -> str:
    """Return what a call answered, in the words of ``expect``; empty for any other outcome."""
    match outcome:
        case Refused(number):
            return errno.errorcode.get(number, str(number))
        case Done() | DirtyPages() | RingsReset() | PreFaulted():
            return SUCCESS
        case _:
            return ""


def without_expectations(scenario: Scenario) -> Scenario:
    """Return a scenario without ``expect``, so that its operations may be changed."""
    operations = tuple(
        msgspec.structs.replace(op, expect="") if op.expect else op for op in scenario.operations
    )
    return msgspec.structs.replace(scenario, operations=operations)
