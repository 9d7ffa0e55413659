"""Runs a command under strace, and keeps what matters of its trace as it comes."""

import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from kvm_abi import notices
from kvm_abi.uapi import Ioctl
from vmm.host.signals import ENDING_SIGNALS
from vmm.replay.recording import TRANSLATES, Filter, strace_command
from vmm.replay.structures import DECODED, structure_text

_BLOCK_BYTES = 1 << 16


class Recorded:
    """What came of a command: its status, the lines that were kept, and what could not be done.

    ``blind`` says why structures were not read: the host denies it.
    """

    def __init__(self) -> None:
        self.status = 0
        self.lines = 0
        self.blind = ""


def recorded(strace: str, fifo: Path, trace: Path, command: tuple[str, ...]) -> Recorded:
    """Run a command, and keep in ``trace`` what matters of what strace says of it."""
    os.mkfifo(fifo, 0o600)
    source = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    held = os.open(fifo, os.O_WRONLY)  # Else the file would end before strace has opened it.
    found = Recorded()
    ours, theirs = socket.socketpair()
    with trace.open("wb") as kept, _left_to_the_command() as recorders, ours, theirs:
        line = strace_command(
            strace, str(fifo), command, knows_namespaces=_knows_namespaces(strace)
        )
        process = _started(line, theirs)
        recorders.append(process.pid)
        theirs.close()
        found.blind, listener = _listener(ours)
        waiter = threading.Thread(target=_close_at_end, args=(process, held))
        waiter.start()
        try:
            found.lines = _Keeper(source, listener, kept).keep()
        finally:
            for fd in (source, listener):
                if fd >= 0:
                    os.close(fd)
        waiter.join()
    found.status = process.returncode
    return found


def _knows_namespaces(strace: str) -> bool:
    """Whether strace can print the pids of other namespaces."""
    try:
        asked = subprocess.run([strace, "--help"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return TRANSLATES in asked.stdout


def _started(command: Sequence[str], to: socket.socket) -> subprocess.Popen[bytes]:
    """Start a command whose calls wait until what they ask for was read, if the host allows it."""

    def watched() -> None:
        try:
            listener = notices.notify_of([int(request) for request in DECODED])
        except OSError as error:
            to.send(str(error).encode())
            return
        socket.send_fds(to, [b"\0"], [listener])
        os.close(listener)

    return subprocess.Popen(command, preexec_fn=watched)  # No other thread runs yet.


def _listener(ours: socket.socket) -> tuple[str, int]:
    """Return why there is no listener, or the listener."""
    said, fds, _, _ = socket.recv_fds(ours, 1000, 1)
    return ("", fds[0]) if fds else (said.decode(), -1)


class _Keeper:
    """Takes what strace writes and what calls ask for, in the order in which it happened.

    strace has written the line of a thread's call before that thread begins its next one: whatever
    is in the fifo comes before a notice.
    """

    def __init__(self, source: int, listener: int, kept: IO[bytes]) -> None:
        self._source = source
        self._listener = listener
        self._kept = kept
        self._filter = Filter()
        self._begun = b""
        self._count = 0
        self._lost: OSError | None = None

    def keep(self) -> int:
        """Take everything until strace ends; return how many lines were kept.

        Raises `OSError` if they cannot be, but only then: the command goes on meanwhile.
        """
        self._take_all()
        if self._lost is None:
            with self._noted():
                self._kept.flush()
        if self._lost is not None:
            raise self._lost
        return self._count

    def _take_all(self) -> None:
        poller = select.poll()
        poller.register(self._source, select.POLLIN)
        if self._listener >= 0:
            poller.register(self._listener, select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._source in ready and not self._drain():
                return
            on_listener = ready.get(self._listener, 0)
            if on_listener & select.POLLIN:
                self._notice()
            elif on_listener:  # Nobody is watched any more.
                poller.unregister(self._listener)

    def _notice(self) -> None:
        notice = notices.next_notice(self._listener)
        if notice is None:
            return
        try:
            self._drain()
            data = notices.memory_of(notice, Ioctl(notice.request).size_bytes)
            self._filter.asked(notice.thread, structure_text(notice.request, data))
        finally:
            notices.let_go_on(self._listener, notice)

    def _drain(self) -> bool:
        """Take all that has been written; return False at the end."""
        while True:
            try:
                block = os.read(self._source, _BLOCK_BYTES)
            except BlockingIOError:
                return True
            *lines, self._begun = (self._begun + block).split(b"\n")
            for line in lines:
                self._line(line + b"\n")
            if not block:
                self._line(self._begun)
                return False

    def _line(self, line: bytes) -> None:
        kept = self._filter.kept(line.decode("latin-1"))
        if kept and self._lost is None:
            with self._noted():
                self._kept.write(kept.encode("latin-1"))
                self._count += 1

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._lost = error


def _close_at_end(process: subprocess.Popen[bytes], fd: int) -> None:
    process.wait()
    os.close(fd)


@contextmanager
def _left_to_the_command() -> Iterator[list[int]]:
    """Let an interruption end the command, but not this program.

    Yields a list for the pid of strace, which blocks such signals. A terminal sends Ctrl-C to the
    command, too; other ending signals reach only this process, which passes them on, or to what the
    command has left running.
    """
    recorders: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for pid in _children(recorders) or _traced_by(recorders):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number, handler in before.items():
        if number == signal.SIGINT:
            signal.signal(number, lambda *_: None)
        elif handler is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        yield recorders
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children(parents: list[int]) -> list[int]:
    """Return the children of these processes."""
    # The name, in parentheses, may contain anything.
    return _processes("stat", lambda text: int(text.rpartition(")")[2].split()[1]) in parents)


def _traced_by(tracers: list[int]) -> list[int]:
    """Return the processes that these trace: what the command has left running."""
    tracing = [f"TracerPid:\t{pid}\n" for pid in tracers]
    return _processes("status", lambda text: any(line in text for line in tracing))


def _processes(file: str, are_meant: Callable[[str], bool]) -> list[int]:
    """Return the processes of whose file in /proc something is true."""
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{file}"):
        with suppress(OSError):
            if are_meant(path.read_text()):
                found.append(int(path.parent.name))
    return found
