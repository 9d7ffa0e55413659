"""The outcomes of KVM_PRE_FAULT_MEMORY, which maps page by page until it meets an obstacle."""

import errno
from collections.abc import Iterable

from vmm.model.allowed import Allowed
from vmm.model.backing import HVA_ABSENT, PRIVATE_FAULT, Piece
from vmm.model.rule import documented
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, PreFaulted, Refused
from vmm.scenario.operations import PAGE_SIZE_BYTES, PreFaultMemory

PRE_FAULT = documented(
    "pre-fault",
    "KVM_PRE_FAULT_MEMORY maps the pages of slots in order, up to the first that it cannot "
    "map, says how far it came, and changes no content",
    "api.rst 4.143",
)
PRE_FAULT_FLAGS = documented(
    "pre-fault-flags",
    "KVM_PRE_FAULT_MEMORY takes no flags, else EINVAL",
    "api.rst 4.143",
)
PRE_FAULT_RANGE = documented(
    "pre-fault-range",
    "what is mapped ahead is whole pages, more than none, and does not wrap, else EINVAL",
    "api.rst 4.143",
)
PRE_FAULT_HOLE = documented(
    "pre-fault-hole",
    "nothing is mapped ahead of a gpa without a slot: ENOENT",
    "api.rst 4.143",
)
PRE_FAULT_KNOWN = documented(
    "pre-fault-known",
    "without two-dimensional paging KVM_PRE_FAULT_MEMORY is EOPNOTSUPP; a kernel that does "
    "not know it answers EINVAL",
    "api.rst 4.143; kvm_arch_vcpu_ioctl",
)

_REFUSED_BY = {
    "hole": (errno.ENOENT, PRE_FAULT_HOLE),
    "absent": (errno.EFAULT, HVA_ABSENT),
    "fault": (errno.EFAULT, PRIVATE_FAULT),
}


def refusal(op: PreFaultMemory, features: Features) -> tuple[Allowed, ...]:
    """Return the refusals that do not depend on what is in the range; empty if there are none."""
    if op.flags:
        return (Allowed(Refused(errno.EINVAL), PRE_FAULT_FLAGS),)
    unaligned = op.gpa % PAGE_SIZE_BYTES or op.size % PAGE_SIZE_BYTES
    if unaligned or not op.size or op.gpa + op.size >= 1 << 64:
        return (Allowed(Refused(errno.EINVAL), PRE_FAULT_RANGE),)
    if not features.pre_fault:
        numbers = (errno.EOPNOTSUPP, errno.EINVAL)
        return tuple(Allowed(Refused(number), PRE_FAULT_KNOWN) for number in numbers)
    return ()


def progress(op: PreFaultMemory, pieces: Iterable[Piece]) -> tuple[Allowed, ...]:
    """Return the outcome for a range; none if it is unknown.

    ``pieces`` are its pages, up to and including the first that is not memory.
    """
    *_, last = pieces
    if last.kind == "unknown":
        return ()
    if last.kind != "memory":
        return (_ended(op, last),)
    return (Allowed(PreFaulted(op.gpa + op.size), PRE_FAULT),)


def end_of(op: PreFaultMemory, outcome: AnyOutcome) -> int:
    """Return the last gpa that was mapped, or the gpa of the obstacle."""
    if not isinstance(outcome, PreFaulted):
        return op.gpa
    return outcome.gpa if outcome.size else outcome.gpa - 1


def _ended(op: PreFaultMemory, piece: Piece) -> Allowed:
    """Return the outcome for a range that cannot be mapped from ``piece`` on."""
    if piece.gpa == op.gpa:
        number, rule = _REFUSED_BY[piece.kind]
        return Allowed(Refused(number), rule)
    return Allowed(PreFaulted(piece.gpa, op.gpa + op.size - piece.gpa), PRE_FAULT)
