"""Seccomp's user notifications of ioctls, typed: what a process asks for, before the kernel acts.

The calls themselves are carried out by the kernel as ever. The descriptor of the listener is ready
for reading whenever a call waits, and hangs up once no process is watched any more.
"""

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from kvm_abi._kvm import ffi as _ffi, lib as _lib
from kvm_abi.mman import checked_result


class Notice(NamedTuple):
    """A thread waits at an ioctl: its number, the request, and the third argument."""

    number: int
    thread: int
    request: int
    argument: int


def notify_of(requests: Sequence[int]) -> int:
    """Have these requests of this process and its children wait; return the listener.

    This cannot be undone: without a listener such a call is ENOSYS. Raises `OSError`.
    """
    numbers = _ffi.new("uint32_t[]", list(requests))
    return checked_result("seccomp", _lib.abi_notify_of(numbers, len(requests)))


def next_notice(listener: int) -> Notice | None:
    """Return the next call that waits; None if it waits no more. Raises `OSError`."""
    found = _ffi.new("uint64_t[4]")
    result = _lib.abi_next_notice(listener, found)
    if result == -errno.ENOENT:
        return None
    checked_result("SECCOMP_IOCTL_NOTIF_RECV", result)
    number, thread, request, argument = found
    return Notice(number, thread, request & 0xFFFF_FFFF, argument)  # As the kernel takes it.


def memory_of(notice: Notice, size_bytes: int) -> bytes:
    """Return what the waiting thread has at its argument; empty if it cannot be read."""
    try:
        with open(f"/proc/{notice.thread}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size_bytes, notice.argument)
    except (OSError, OverflowError):
        return b""


def let_go_on(listener: int, notice: Notice) -> None:
    """Let the call go on, if it still waits. Raises `OSError`."""
    result = _lib.abi_let_go_on(listener, notice.number)
    if result != -errno.ENOENT:
        checked_result("SECCOMP_IOCTL_NOTIF_SEND", result)
