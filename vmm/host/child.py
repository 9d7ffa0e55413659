"""`Child`: a forked process with a connection to it, whose end is noticed."""

import faulthandler
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from mmap import mmap
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from kvm_abi import raw
from vmm.host.signals import ENDING_SIGNALS

FAILED = os.EX_SOFTWARE
"""The exit status of a child that ended with an exception, or asked for that."""

DENIED = os.EX_OSERR
"""The exit status of a child that the host did not let begin."""

_MOST_LEFT_BYTES = 1 << 16
"""What a child can leave to say why it failed. Memory is allocated only for what is written."""

_PATIENCE_S = 4.0
_LOOK_EVERY_S = 0.01
_NO_PRCTL = "the host: prctl(2) is denied to a forked process"
_REAPED = "the host: how a child ended is lost: SIGCHLD is ignored, or another waited for it"


def name_of(number: int) -> str:
    """Return a name for a child that no other process on this host has: 15 bytes at most."""
    return f"vmm{os.getpid()}-{number}"


def _denied(error: OSError) -> int:
    """Return the exit status of a child that cannot begin."""
    return DENIED


def fork(name: str = "", denied: Callable[[OSError], int] = _denied) -> int:
    """Fork; the child dies with this process, and ignores `ENDING_SIGNALS`.

    It gets a ``name``, unless that is empty. If the host denies it any of this (a seccomp filter
    may), it ends at once, with the status that ``denied`` returns: it must never go on with what
    the parent does after a failure.

    These signals may reach a whole process group; the parent ends its children once it has saved
    what they recorded. Do not use this function for a child that executes another program.
    """
    parent = os.getpid()
    # The child must not run a handler of the parent's before it ignores the signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid == 0:
        _prepare(parent, name, denied, before)
    return pid


def _prepare(
    parent: int, name: str, denied: Callable[[OSError], int], unblocked: set[int | signal.Signals]
) -> None:
    """Prepare a child, or end it."""
    status = FAILED
    is_ready = False
    try:
        raw.die_with_parent(parent)
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)  # Its parent says that it died by it.
        if name:
            raw.name_process(name)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        is_ready = True
    except OSError as error:
        status = denied(error)
    finally:
        if not is_ready:
            os._exit(status)


def _explained(error: BaseException) -> str:
    """Return what is to be said of an exception that has ended a child."""
    return "internal error: " + "".join(traceback.format_exception(error))


def _shortened(text: bytes) -> bytes:
    """Cut the middle out of a text that is too long: a traceback says most at its ends."""
    half = _MOST_LEFT_BYTES // 2
    return text if len(text) <= 2 * half else text[:half] + text[-half:]


class Child:
    """A forked process. ``connection`` is our end of the connection to it.

    At EOF on the connection, the process is gone, or about to be.
    """

    def __init__(self, pid: int, connection: Connection, left: mmap) -> None:
        self.connection = connection
        self._pid = pid
        self._left = left
        self._heard = select.poll()
        self._heard.register(connection, select.POLLIN)
        self._hung_up = select.poll()
        self._hung_up.register(connection, 0)

    @classmethod
    def start(
        cls,
        body: Callable[[Connection], None],
        name: str = "",
        explain: Callable[[BaseException], str] = _explained,
    ) -> Self:
        """Fork a process that runs ``body`` and exits. This process must have no other threads.

        ``name`` is the name of the new process, and of its own children, in the kernel's log. If
        the body raises an exception, `end` returns what ``explain`` makes of it.
        """
        ours, theirs = Pipe()
        left = mmap(-1, _MOST_LEFT_BYTES)
        pid = fork(name)
        if pid == 0:
            status = FAILED
            try:
                ours.close()
                # Where a signal kills it, the Python stack reaches the person: fd 2 is stderr.
                faulthandler.enable(2)
                body(theirs)
                status = 0
            except SystemExit:
                pass
            except BaseException as error:
                left.write(_shortened(explain(error).encode(errors="backslashreplace")))
            finally:
                os._exit(status)
        theirs.close()
        return cls(pid, ours, left)

    def answered(self, time_limit_s: float) -> bool:
        """Whether a message, or EOF, arrives within a time."""
        return bool(self._heard.poll(time_limit_s * 1000))

    def stack(self) -> str:
        """Return the kernel stacks of the process's threads, as far as they can be read."""
        stacks = []
        try:
            for thread in sorted(Path(f"/proc/{self._pid}/task").iterdir()):
                lines = (thread / "stack").read_text().split("\n")
                stacks.append(" < ".join(line.split(" ", 1)[-1] for line in lines if line))
        except OSError as error:
            return f"kernel stack not readable: {error.strerror}"
        return "kernel stack: " + ("; ".join(filter(None, stacks)) or "none, it runs in user space")

    def is_stopped(self) -> bool:
        """Whether the process is stopped: by SIGSTOP or the like, or by a debugger."""
        try:
            stat = Path(f"/proc/{self._pid}/stat").read_text()
        except OSError:
            return self._reports_a_stop()
        return stat.rpartition(")")[2].split()[0] in ("T", "t")

    def starved_s(self) -> float:
        """Return how long the process has waited for a CPU so far; 0 if the kernel does not count.

        Of several threads it is the one that waited longest.
        """
        longest_ns = 0
        with suppress(OSError, ValueError, IndexError):
            for each in Path(f"/proc/{self._pid}/task").iterdir():
                with suppress(OSError):  # A thread that has ended meanwhile.
                    longest_ns = max(longest_ns, int((each / "schedstat").read_text().split()[1]))
        return longest_ns / 1e9

    def _reports_a_stop(self) -> bool:
        """Whether wait(2) says so: debuggers are missed."""
        try:
            how = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self._pid, how) is not None
        except OSError:
            return False

    def end(self) -> str:
        """Make sure that the process is gone; return how it died by itself, "" if it did not.

        A process that cannot be killed, because it hangs in the kernel, is left alone. What the
        host has denied it, or us, begins with ``the host: ``; for one that ended by an exception,
        this is the explanation given to `start`.
        """
        if not self._pid:
            return ""
        # A dying process closes its files a while before it can be waited for.
        is_leaving = bool(self._hung_up.poll(0))
        self.connection.close()
        try:
            status = self._status(_PATIENCE_S if is_leaving else 0)
            if status is None:
                os.kill(self._pid, signal.SIGKILL)
                if self._status(_PATIENCE_S) is None:
                    return "hung: cannot be killed"
                status = 0
        except (ChildProcessError, ProcessLookupError):
            self._pid = 0
            return _REAPED if is_leaving else ""
        self._pid = 0
        if status == DENIED:
            return _NO_PRCTL
        why = self._left[:].rstrip(b"\0").decode()
        if status == FAILED and why:
            return why
        if status < 0:
            return f"died: {signal.Signals(-status).name}"
        return f"died: exit status {status}" if status else ""

    def _status(self, time_limit_s: float) -> int | None:
        """Return the exit status, negative for a signal; None if the process does not end."""
        deadline = time.monotonic() + time_limit_s
        if time_limit_s and not self._waited(time_limit_s):
            while not os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if time.monotonic() >= deadline:
                    return None
                time.sleep(_LOOK_EVERY_S)
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def _waited(self, time_limit_s: float) -> bool:
        """Wait for the process's end; False if no pidfd can be had: denied, or too many files."""
        try:
            pidfd = os.pidfd_open(self._pid)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        try:
            select.select([pidfd], [], [], time_limit_s)
        finally:
            os.close(pidfd)
        return True
