"""What KVM_PRE_FAULT_MEMORY may come to: it maps slots page by page, up to what it cannot map."""

import errno
from collections.abc import Iterable

from vmm.model.allowed import Allowed
from vmm.model.backing import Piece
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, PreFaulted, Refused
from vmm.scenario.operations import PAGE_SIZE_BYTES, PreFaultMemory

_REFUSED_BY = {
    "hole": (errno.ENOENT, "pre-fault-hole"),
    "absent": (errno.EFAULT, "hva-absent"),
    "fault": (errno.EFAULT, "private-fault"),
}


def refusal(op: PreFaultMemory, features: Features) -> tuple[Allowed, ...]:
    """Return the refusals that do not depend on what the range holds; none if there is none."""
    if op.flags:
        return (Allowed(Refused(errno.EINVAL), "pre-fault-flags"),)
    unaligned = op.gpa % PAGE_SIZE_BYTES or op.size % PAGE_SIZE_BYTES
    if unaligned or not op.size or op.gpa + op.size >= 1 << 64:
        return (Allowed(Refused(errno.EINVAL), "pre-fault-range"),)
    if not features.pre_fault:
        numbers = (errno.EOPNOTSUPP, errno.EINVAL)
        return tuple(Allowed(Refused(number), "pre-fault-known") for number in numbers)
    return ()


def progress(op: PreFaultMemory, pieces: Iterable[Piece]) -> tuple[Allowed, ...]:
    """Return the outcome for a range; none where that is not known.

    ``pieces`` are its pages, up to the first that is no memory.
    """
    *_, last = pieces
    if last.kind == "unknown":
        return ()
    if last.kind != "memory":
        return (_ended(op, last),)
    return (Allowed(PreFaulted(op.gpa + op.size), "pre-fault"),)


def end_of(op: PreFaultMemory, outcome: AnyOutcome) -> int:
    """Return the last gpa of what was mapped or was in the way."""
    if not isinstance(outcome, PreFaulted):
        return op.gpa
    return outcome.gpa if outcome.size else outcome.gpa - 1


def _ended(op: PreFaultMemory, piece: Piece) -> Allowed:
    """Return the outcome for a range that cannot be mapped from ``piece`` on."""
    if piece.gpa == op.gpa:
        number, rule = _REFUSED_BY[piece.kind]
        return Allowed(Refused(number), rule)
    return Allowed(PreFaulted(piece.gpa, op.gpa + op.size - piece.gpa), "pre-fault")
