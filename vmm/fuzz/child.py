"""Child processes that talk: a fork, a pipe, and an end that is noticed."""

import os
import select
import signal
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Self

_FAILED = 70
_PATIENCE_S = 4.0


class Child:
    """A forked process that runs ``body`` and sends messages over ``connection``.

    When the connection is at its end the process is gone, or about to be.
    """

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid = pid
        self.connection = connection

    @classmethod
    def start(cls, body: Callable[[Connection], None]) -> Self:
        """Fork. The process must not have other threads."""
        receiver, sender = Pipe(duplex=False)
        pid = os.fork()
        if pid == 0:
            status = _FAILED
            try:
                receiver.close()
                body(sender)
                status = 0
            finally:
                os._exit(status)
        sender.close()
        return cls(pid, receiver)

    def end(self) -> str:
        """Make sure that the process is gone, and return how it died; "" if it just ended.

        A process that cannot be killed, because it hangs in the kernel, is left behind.
        """
        self.connection.close()
        status = self._reap(os.WNOHANG)
        if status is not None:
            return f"died: {signal.Signals(-status).name}" if status < 0 else ""
        os.kill(self.pid, signal.SIGKILL)
        pidfd = os.pidfd_open(self.pid)
        try:
            ready, _, _ = select.select([pidfd], [], [], _PATIENCE_S)
        finally:
            os.close(pidfd)
        if not ready:
            return "hung: cannot be killed"
        self._reap(0)
        return ""

    def _reap(self, options: int) -> int | None:
        pid, status = os.waitpid(self.pid, options)
        return os.waitstatus_to_exitcode(status) if pid else None
