"""Why a history ends before its scenario does: how the reason of its `End` begins."""

import errno

HUNG = "hung: "
"""The kernel did not come back within the time limit."""

DIED = "died: "
"""The process that carried the scenario out was killed, or ended."""

ENDLESS = "endless: "
"""A guest did not leave KVM_RUN by itself within its time limit, though a signal ends that."""

REFUSED = "refused: "
"""A call that every VMM needs was refused, or answered wrongly: the last event says which."""

HOST = "the host: "
"""The host had no memory, descriptors or disk left for what this program itself needs."""

HARNESS = "internal error: "
"""This program failed: the rest is its traceback."""

KERNEL_SHORT = frozenset((errno.ENOMEM, errno.EMFILE, errno.ENFILE))
"""What a kernel answers that has run out: it is no answer to what was asked."""

KERNEL_SHORT_NAMES = {errno.errorcode[number]: number for number in sorted(KERNEL_SHORT)}

HOST_SHORT = KERNEL_SHORT | {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EAGAIN,
}
"""What a call of this program's own, such as fork(2) or write(2), fails with then."""


_LIMITS = {errno.EFBIG: "ulimit -f", errno.EMFILE: "ulimit -n", errno.EAGAIN: "ulimit -u"}
"""Which limit of a process it is that a call of this program's own has met."""


def of_the_host(error: BaseException) -> str:
    """Return why a history ends, or nothing is known, where the host had run out of something."""
    return HOST + what_is_short(error)


def what_is_short(error: BaseException) -> str:
    """Return what an error says, in words: the file, if there is one, the reason and the limit."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or "out of memory"
    # What is full is the file that was written, where one was copied to another.
    name = error.filename2 or error.filename
    file = f"{name}: " if name else ""
    limit = f" ({_LIMITS[error.errno]})" if error.errno in _LIMITS else ""
    return f"{file}{error.strerror}{limit}"


def is_short(error: BaseException) -> bool:
    """Whether the host has run out of something, so that neither KVM nor this program failed."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, OSError) and error.errno in HOST_SHORT
