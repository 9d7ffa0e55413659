"""Hosts that deny system calls, by seccomp filters of this process's own."""

import ctypes
import struct
from enum import IntEnum


class Call(IntEnum):
    """Numbers of x86-64 system calls."""

    MUNMAP = 11
    RENAME = 82
    FCHMOD = 91
    PRCTL = 157
    SCHED_SETAFFINITY = 203
    LINKAT = 265
    PIDFD_OPEN = 434


_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_FILTER = 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x0005_0000, 0x7FFF_0000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def deny(call: Call, number: int) -> None:
    """Let a system call of this process, and of what it starts, fail with an errno from now on."""
    instructions = ctypes.create_string_buffer(
        struct.pack("HBBI", _LOAD_WORD, 0, 0, 0)  # The number of the call comes first.
        + struct.pack("HBBI", _JUMP_IF_EQUAL, 0, 1, call)
        + struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | number)
        + struct.pack("HBBI", _RETURN, 0, 0, _ALLOW)
    )
    program = _Program(4, ctypes.addressof(instructions))
    prctl = ctypes.CDLL(None).prctl
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0),
    ):
        if prctl(*arguments):
            raise OSError("no seccomp here")
