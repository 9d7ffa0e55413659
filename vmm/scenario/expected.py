"""What the author of a scenario expects of an operation, and whether it came."""

import errno

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
    ClearDirtyLog,
    CreateGuestMemfd,
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    GetDirtyLog,
    KvmclockCtrl,
    PreFaultMemory,
    ResetDirtyRings,
    Scenario,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
)

SUCCESS = "success"

_ERRNOS = frozenset(errno.errorcode.values())
_CALLS = (
    *(SetUserMemoryRegion, GetDirtyLog, ClearDirtyLog, ResetDirtyRings, EnableCap),
    *(SetTssAddr, SetIdentityMapAddr, CreateIrqchip, CreateVcpu),
    *(CreateGuestMemfd, SetMemoryAttributes, PreFaultMemory, KvmclockCtrl),
)
"""Operations that are one call to KVM, which succeeds or says an errno."""


def expectation_problem(op: AnyOperation, is_raced: bool) -> str:
    """Return what is wrong with an operation's ``expect``; empty if nothing is."""
    if not op.expect:
        return ""
    if is_raced:
        return ".expect: calls of a race may be answered one way or the other; leave it out"
    if not isinstance(op, _CALLS):
        return ".expect: only calls to KVM answer with success or an errno"
    if op.expect != SUCCESS and op.expect not in _ERRNOS:
        return f'.expect: {op.expect!r} is neither "success" nor an errno\'s name, such as "EINVAL"'
    return ""


def answer(outcome: AnyOutcome) -> str:
    """Return what a call answered, in the words of ``expect``; empty for what is no answer."""
    match outcome:
        case Refused(number):
            return errno.errorcode.get(number, str(number))
        case Done() | DirtyPages() | RingsReset() | PreFaulted():
            return SUCCESS
        case _:
            return ""


def without_expectations(scenario: Scenario) -> Scenario:
    """Return a scenario that expects nothing, so that it may be changed."""
    operations = tuple(
        msgspec.structs.replace(op, expect="") if op.expect else op for op in scenario.operations
    )
    return msgspec.structs.replace(scenario, operations=operations)
