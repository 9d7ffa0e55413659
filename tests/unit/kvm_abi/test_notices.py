"""Seccomp's user notifications: what another process asks of ioctl is read before it happens."""

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvm_abi import notices

REQUEST = 0x4008AE48


@contextmanager
def asking(argument: bytes) -> Iterator[tuple[int, socket.socket]]:
    """Fork a child that makes one ioctl on a pipe; yield the listener, and where it tells errno."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            socket.send_fds(theirs, [b"\0"], [notices.notify_of([0x1234, REQUEST])])
            fcntl.ioctl(os.pipe()[0], 0x1235, bytearray(argument))
        except OSError as error:
            theirs.send(struct.pack("<i", error.errno or 0))
        try:
            fcntl.ioctl(os.pipe()[0], REQUEST, bytearray(argument))
        except OSError as error:
            theirs.send(struct.pack("<i", error.errno or 0))
        finally:
            os._exit(0)
    theirs.close()
    try:
        with ours:
            _, fds, _, _ = socket.recv_fds(ours, 4, 1)
            if not fds:
                pytest.skip("seccomp gives this process no listener")
            yield fds[0], ours
            os.close(fds[0])
    finally:
        os.waitpid(pid, 0)


def test_what_is_asked_is_read_and_then_happens() -> None:
    with asking(b"argument") as (listener, said):
        assert struct.unpack("<i", said.recv(4)) == (errno.ENOTTY,)  # The request is another.
        assert select.select([listener], [], [], 10)[0] == [listener]
        notice = notices.next_notice(listener)
        assert notice is not None
        assert notice.request == REQUEST
        assert notices.memory_of(notice, 8) == b"argument"
        assert notices.memory_of(notice._replace(argument=8), 8) == b""
        assert notices.memory_of(notice._replace(argument=1 << 63), 8) == b""
        notices.let_go_on(listener, notice)
        assert struct.unpack("<i", said.recv(4)) == (errno.ENOTTY,)
        notices.let_go_on(listener, notice)  # It waits no more.


def test_too_many_requests_are_refused_before_anything_is_watched() -> None:
    with pytest.raises(OSError, match="seccomp: Argument list too long"):
        notices.notify_of(range(40))
