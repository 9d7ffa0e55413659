"""Hosts that deny system calls, by seccomp filters of this process's own."""

import ctypes
import struct
from enum import IntEnum


class Call(IntEnum):
    """Numbers of x86-64 system calls."""

    MUNMAP = 11
    IOCTL = 16
    RENAME = 82
    FCHMOD = 91
    PRCTL = 157
    SCHED_SETAFFINITY = 203
    SCHED_GETAFFINITY = 204
    LINKAT = 265
    FALLOCATE = 285
    MEMFD_CREATE = 319
    PIDFD_OPEN = 434


_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_FILTER = 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x0005_0000, 0x7FFF_0000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_NUMBER_AT, _SECOND_ARGUMENT_AT = 0, 24
"""Where `struct seccomp_data` has them."""


def deny(call: Call, number: int, second: int | None = None) -> None:
    """Let a system call of this process, and of what it starts, fail with an errno from now on.

    With ``second``, only where its second argument is that: of ioctl(2) one request.
    """
    wanted = [(_NUMBER_AT, int(call))]
    if second is not None:
        wanted.append((_SECOND_ARGUMENT_AT, second))
    steps: list[tuple[int, int, int, int]] = []
    for place, value in wanted:
        left = 2 * (len(wanted) - len(steps) // 2) - 1
        steps += [(_LOAD_WORD, 0, 0, place), (_JUMP_IF_EQUAL, 0, left, value)]
    steps += [(_RETURN, 0, 0, _ERRNO | number), (_RETURN, 0, 0, _ALLOW)]
    instructions = ctypes.create_string_buffer(
        b"".join(struct.pack("HBBI", *step) for step in steps)
    )
    program = _Program(len(steps), ctypes.addressof(instructions))
    prctl = ctypes.CDLL(None).prctl
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0),
    ):
        if prctl(*arguments):
            raise OSError("no seccomp here")
