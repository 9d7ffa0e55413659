"""Why a history ends before its scenario does: the prefixes of the reason in its `End`."""

import errno
import importlib
import linecache
import os
import traceback
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice

HUNG = "hung: "
"""The kernel did not return within the time limit."""

DIED = "died: "
"""The process that executed the scenario was killed, or exited."""

ENDLESS = "endless: "
"""A guest did not leave KVM_RUN by itself within its time limit, although a signal ends it."""

REFUSED = "refused: "
"""A call that every VMM needs was refused, or answered wrongly: the last event says which."""

HOST = "the host: "
"""The host had no memory, descriptors or disk left for what this program itself needs."""

HARNESS = "internal error: "
"""This program failed; the rest of the reason is its traceback."""

INTERRUPTED = "interrupted"
"""Somebody ended the run: the whole reason."""

KERNEL_SHORT = frozenset((errno.ENOMEM, errno.EMFILE, errno.ENFILE))
"""What a kernel answers when it has run out of something: no answer to the question asked."""

KERNEL_SHORT_NAMES = {errno.errorcode[number]: number for number in sorted(KERNEL_SHORT)}

_STORAGE_GONE = frozenset(
    (
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EREMOTEIO,
        errno.EHOSTDOWN,
        errno.ESHUTDOWN,
        errno.ENOLCK,
        errno.EUCLEAN,
    )
)
"""What a file system then says whose server or device does not answer, or that is damaged."""

HOST_SHORT = KERNEL_SHORT | {
    *_STORAGE_GONE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EAGAIN,
}
"""What a call of this program's own, such as fork(2) or write(2), then fails with."""


HOST_DENIES = frozenset((errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ECHILD))
"""What such a call fails with where the host allows less: a seccomp filter, an old kernel, or
SIGCHLD that is ignored, so that nobody can wait for a child."""

_DEVICE = "/dev/kvm"

_CUT_OFF = (
    "marshal data too short",
    "EOF read where object expected",
    "EOF read where not expected",
)
"""What Python says of a compiled module that it wrote itself, as far as a full disk took it."""

_NOT_LOADED = (
    "failed to map segment from shared object",
    "cannot map zero-fill pages",
    "cannot change memory protections",
    "cannot apply additional memory protection",
    "file too short",
)
"""What dlopen(3) says without an errno's text where memory ran out, or a full disk cut a file."""

_INSIDE_PYTHON = (
    "returned NULL without setting an exception",
    "returned a result with an exception set",
    "error return without exception set",
)
"""What a SystemError says where a function of Python's own has failed and not said why: those of
its parts that lose a MemoryError on their way, such as `re`, end like that.
"""

_NO_THREAD = "can't start new thread"
"""What Python says where the host allows no more processes."""

_LIMITS = {errno.EFBIG: "ulimit -f", errno.EMFILE: "ulimit -n", errno.EAGAIN: "ulimit -u, pids.max"}
"""The resource limit that may have made a call of this program's own fail."""


def of_the_host(error: BaseException) -> str:
    """Return the reason for an ending that is due to a shortage of the host."""
    return HOST + what_is_short(error)


def why_failed(error: BaseException) -> str:
    """Return the reason for an ending by an exception: a shortage of the host, or our mistake."""
    if is_short(error):
        return of_the_host(error)
    return HARNESS + "".join(traceback.format_exception(error))


def what_is_short(error: BaseException) -> str:
    """Return an error in words: the file, if there is one, the reason and the limit."""
    if is_cut_off(error):
        return "a compiled module was cut off by a full disk, or ulimit -f: remove the __pycache__"
    if is_inside_python(error):
        return f"out of memory, as it seems: Python itself failed: {error}"
    if isinstance(error, ImportError):
        return f"a module could not be loaded: {error}"
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or "out of memory"
    # Where one file was copied to another, the one that was written is full.
    name = error.filename2 or error.filename or _call_of(error)
    file = f"{name}: " if name else ""
    limit = f" ({_LIMITS[error.errno]})" if error.errno in _LIMITS else ""
    return f"{file}{error.strerror}{limit}"


def _call_of(error: OSError) -> str:
    """Return the name of the call that has raised an error, as the source has it; "" if unknown."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    place = next(islice(code.co_positions(), trace.tb_lasti // 2, None), None)
    if place is None or place[0] is None or place[2] is None:
        return ""
    text = linecache.getline(code.co_filename, place[0])[place[2] :].partition("(")[0]
    call = text.rpartition(".")[2]
    return call if call.isidentifier() and text.replace(".", "").isidentifier() else ""


def is_cut_off(error: BaseException) -> bool:
    """Whether Python cannot load a module that it has compiled, since the file is incomplete."""
    return isinstance(error, EOFError) and str(error) in _CUT_OFF


def is_inside_python(error: BaseException) -> bool:
    """Whether a part of Python has failed without saying why, as it does when memory ran out."""
    return isinstance(error, SystemError) and str(error).endswith(_INSIDE_PYTHON)


def is_unreadable(error: BaseException) -> bool:
    """Whether a module is there that Python could not load, for want of memory or descriptors.

    Python takes a folder whose state it cannot get for one without the module.
    """
    if isinstance(error, ModuleNotFoundError):
        with suppress(ImportError, ValueError):
            importlib.invalidate_caches()
            return error.name is not None and find_spec(error.name) is not None
        return False
    said = str(error)
    ends = tuple(os.strerror(number) for number in HOST_SHORT)
    return isinstance(error, ImportError) and (
        said.endswith(ends) or any(each in said for each in _NOT_LOADED)
    )


def is_short(error: BaseException) -> bool:
    """Whether the host ran out of something, so that neither KVM nor this program is at fault.

    So it is if the device cannot be opened any more: removed, or no longer permitted; and if the
    host denies a call that is not KVM's.
    """
    if isinstance(error, MemoryError) or is_cut_off(error) or is_unreadable(error):
        return True
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return True
    if is_inside_python(error):
        return True
    if not isinstance(error, OSError):
        return False
    if type(error).__module__ != OSError.__module__:  # What KVM answers is of another class.
        return error.errno in KERNEL_SHORT or error.filename == _DEVICE
    return error.errno in HOST_SHORT | HOST_DENIES or error.filename == _DEVICE
