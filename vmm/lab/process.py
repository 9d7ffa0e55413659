"""Runs an emulator: passes on the guest's output, and watches the kernel's log and the time."""

import math
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import BinaryIO

from vmm.lab.errors import LabError
from vmm.lab.log import LogReader, Reports

_LOOK_S = 0.1
_GRACE_S = 10
"""How long an emulator may take to end after its guest has."""

Sink = Callable[[bytes], None]


@contextmanager
def emulator(
    command: Sequence[str], errors: BinaryIO, pass_fds: Sequence[int]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start an emulator; kill it when the block ends or this process dies.

    It has its own session, so that Ctrl-C at the terminal reaches this process first. Its standard
    input is a pipe.
    """
    try:
        process = subprocess.Popen(
            dying_with_parent("KILL", command),
            stdin=subprocess.PIPE,
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
        assert process.stdin is not None
        with suppress(OSError):  # The reader of the rest is gone.
            process.stdin.close()


def dying_with_parent(name: str, command: Sequence[str]) -> Sequence[str]:
    """Return a command that gets a signal, such as KILL, when the process that starts it dies."""
    setpriv = shutil.which("setpriv")
    return command if setpriv is None else [setpriv, "--pdeathsig", name, *command]


class Pipes:
    """Pipes that an emulator writes to; their data is passed on at once."""

    def __init__(self, *sinks: Sink) -> None:
        self._selector = selectors.DefaultSelector()
        self.writers: list[int] = []
        for sink in sinks:
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            self._selector.register(reader, selectors.EVENT_READ, sink)
            self.writers.append(writer)

    def close_writers(self) -> None:
        """Close our copies of the writing ends."""
        for writer in self.writers:
            os.close(writer)
        self.writers.clear()

    def pass_on(self, seconds: float) -> bool:
        """Pass on the data that comes within some time; return whether there was any."""
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
        """Close everything that is left."""
        self.close_writers()
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fd)
            os.close(key.fd)
        self._selector.close()


class Late(Enum):
    """Why a machine was ended."""

    NOT = "it was"
    TIME = "its time is over"
    DEAD = "no sign of life"


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long a machine may take, print nothing, and give no sign of life once it is ready."""

    total_s: float
    silence_s: float = math.inf
    life_s: float = math.inf


def watch(
    process: subprocess.Popen[bytes],
    pipes: Pipes,
    log: LogReader,
    limits: TimeLimits,
    on_reports: Callable[[Reports], None],
) -> Generator[None, None, tuple[Reports, Late]]:
    """Wait until the machine has ended; return what its log says, and whether it was late.

    ``on_reports`` gets the reports whenever the log has grown. This is a generator, so that others
    have their turn after each look, which takes a tenth of a second at most.
    """
    printed = heard = time.monotonic()
    end = heard + limits.total_s
    late, size = Late.NOT, 0
    while process.poll() is None:
        has_printed = pipes.pass_on(_LOOK_S)
        reports = log.read()
        now = time.monotonic()
        printed = now if has_printed else printed
        if log.size != size:
            on_reports(reports)
        if log.size != size or has_printed or not reports.is_ready:
            heard, size = now, log.size
        if reports.is_over or reports.fatal or reports.has_panicked:
            end = min(end, time.monotonic() + _GRACE_S)
        is_dead = now - heard >= limits.life_s
        if is_dead or now >= min(end, printed + limits.silence_s):
            if not (reports.is_over or reports.fatal or reports.has_panicked):
                late = Late.DEAD if is_dead else Late.TIME
            process.kill()
            process.wait()
        yield
    while pipes.pass_on(0):
        pass
    return log.close(), late
