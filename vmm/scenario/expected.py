"""What the author of a scenario expects of an operation, and whether that happened."""

import errno
from typing import assert_never

import msgspec

from vmm.scenario.history import (
    AnyOutcome,
    DirtyPages,
    Done,
    PreFaulted,
    Refused,
    RingsReset,
)
from vmm.scenario.operations import (
    AnyOperation,
    ChangeHostMemory,
    Churn,
    ClearDirtyLog,
    CloseGuestMemfd,
    CloseVm,
    CoalesceMmio,
    CollectMmio,
    CreateGuestMemfd,
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    Execute,
    GetDirtyLog,
    HarvestDirtyRing,
    HostWrite,
    Inspect,
    Instruction,
    IoEventFd,
    KvmclockCtrl,
    Lives,
    MapGuestMemfd,
    NewVm,
    PreFaultMemory,
    PunchGuestMemfd,
    Race,
    ResetDirtyRings,
    Scenario,
    SetClockMsr,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    Start,
    Sweep,
    SwitchVm,
    Touch,
    UnmapInternalSlots,
)

SUCCESS = "success"

_ERRNOS = frozenset(errno.errorcode.values())


def _is_call(op: AnyOperation) -> bool:
    """Whether an operation is one call to KVM, which succeeds or fails with an errno."""
    match op:
        case SetUserMemoryRegion() | GetDirtyLog() | ClearDirtyLog() | ResetDirtyRings():
            return True
        case EnableCap() | SetTssAddr() | SetIdentityMapAddr() | CreateIrqchip() | CreateVcpu():
            return True
        case CreateGuestMemfd() | SetMemoryAttributes() | PreFaultMemory() | KvmclockCtrl():
            return True
        case CoalesceMmio() | IoEventFd():
            return True
        case Touch() | Sweep() | Execute() | Instruction() | Start() | Race():
            return False
        case HostWrite() | ChangeHostMemory() | Inspect() | HarvestDirtyRing() | CollectMmio():
            return False
        case CloseGuestMemfd() | MapGuestMemfd() | PunchGuestMemfd() | UnmapInternalSlots():
            return False
        case SetClockMsr():  # KVM_SET_MSRS returns how many MSRs were set.
            return False
        case Lives() | Churn() | NewVm() | SwitchVm() | CloseVm():
            return False
        case _:
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
