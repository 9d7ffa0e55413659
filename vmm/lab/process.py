"""Runs an emulator: passes on what the guest prints, watches the kernel's log and the time."""

import math
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from vmm.lab.errors import LabError
from vmm.lab.log import LogReader, Reports

_LOOK_S = 0.1
_GRACE_S = 10
"""So long an emulator may take to end after its guest has."""

Sink = Callable[[bytes], None]


@contextmanager
def emulator(
    command: Sequence[str], errors: BinaryIO, pass_fds: Sequence[int]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start an emulator, and kill it when the block ends or this process dies.

    It has a session of its own, so that Ctrl-C at the terminal reaches this process first.
    """
    guarded = ["setpriv", "--pdeathsig", "KILL", *command] if shutil.which("setpriv") else command
    try:
        process = subprocess.Popen(
            guarded,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        raise LabError(f"cannot start {command[0]}: {error.strerror}") from None
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Pipes:
    """Pipes that an emulator writes to; what comes is handed on at once."""

    def __init__(self, *sinks: Sink) -> None:
        self._selector = selectors.DefaultSelector()
        self.writers: list[int] = []
        for sink in sinks:
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            self._selector.register(reader, selectors.EVENT_READ, sink)
            self.writers.append(writer)

    def close_writers(self) -> None:
        """Leave writing to the emulator."""
        for writer in self.writers:
            os.close(writer)
        self.writers.clear()

    def pass_on(self, seconds: float) -> bool:
        """Hand on what comes within some time; return whether anything did."""
        if not self._selector.get_map():
            time.sleep(seconds)
            return False
        has_any = False
        for key, _ in self._selector.select(seconds):
            data = os.read(key.fd, 65536)
            if data:
                has_any = True
                key.data(data)
            else:
                self._selector.unregister(key.fd)
                os.close(key.fd)
        return has_any

    def close(self) -> None:
        """Close all that is left."""
        self.close_writers()
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fd)
            os.close(key.fd)
        self._selector.close()


def watch(
    process: subprocess.Popen[bytes],
    pipes: Pipes,
    log: LogReader,
    limit_s: float,
    silence_s: float = math.inf,
) -> tuple[Reports, bool]:
    """Wait until the machine has ended; return what its log says, and whether time was up.

    It is up, too, when the guest has printed nothing for ``silence_s``.
    """
    last = time.monotonic()
    end = last + limit_s
    is_late = False
    while process.poll() is None:
        if pipes.pass_on(_LOOK_S):
            last = time.monotonic()
        reports = log.read()
        if reports.is_over or reports.fatal or reports.has_panicked:
            end = min(end, time.monotonic() + _GRACE_S)
        if time.monotonic() >= min(end, last + silence_s):
            is_late = not (reports.is_over or reports.fatal or reports.has_panicked)
            process.kill()
            process.wait()
    while pipes.pass_on(0):
        pass
    return log.close(), is_late
