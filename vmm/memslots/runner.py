"""Runs a scenario in a child process: what hangs or dies is an end like any other.

The child appends to a file that outlives it; the parent waits with a time limit and reads what
there is. So a history is there whatever the kernel did to the child.
"""

import gc
import os
import select
import signal
import traceback
from pathlib import Path

from vmm.memslots.codec import history_line, parse_history
from vmm.memslots.executor import execute
from vmm.memslots.features import Features
from vmm.memslots.history import End, Event, Header, History
from vmm.memslots.operations import Scenario
from vmm.system import Kvm

TIME_LIMIT_S = 60.0
_HARNESS_FAILED = 70
_HARNESS = "harness: "


class HarnessError(RuntimeError):
    """This program failed, which says nothing about the kernel."""


def run_isolated(
    scenario: Scenario,
    features: Features,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    host: dict[str, str] | None = None,
    journal: Path | None = None,
) -> History:
    """Return the history of a scenario, carried out in a child process.

    Like `Running`, with nothing done meanwhile.
    """
    running = Running(Header(scenario, features, host or {}), journal=journal)
    running.wait(time_limit_s)
    return running.history()


class Running:
    """A scenario under way in a child process: `wait` for it, then read its `history`."""

    def __init__(self, header: Header, *, journal: Path | None = None, cpu: int | None = None):
        """Start the scenario of ``header``, on one CPU if ``cpu`` names it.

        ``journal`` is a file to which the history is written as it happens; what was recorded
        is on disk before the next operation begins.
        """
        self._name = header.scenario.name
        self._file = _open_journal(journal)
        self._child = os.fork()
        if self._child == 0:
            _child(header, self._file, cpu)

    def wait(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        """Wait for the end of the child, and put an end to one that takes too long.

        `History.end` says what went wrong with the run itself: "hung ...", "died ...",
        "interrupted".
        """
        reason = _wait(self._child, time_limit_s)
        if reason:
            _write_all(self._file, history_line(End(reason)))

    def history(self) -> History:
        """Return what was recorded; to be called once, after `wait`.

        Raises HarnessError where this program is at fault.
        """
        try:
            return _read_back(self._file, self._name)
        finally:
            os.close(self._file)


def _open_journal(journal: Path | None) -> int:
    if journal is None:
        return os.memfd_create("history", os.MFD_CLOEXEC)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_DSYNC | os.O_CLOEXEC
    return os.open(journal, flags, 0o644)


def _child(header: Header, file: int, cpu: int | None) -> None:
    """Run the scenario and leave; never returns."""
    gc.disable()  # It makes no cycles that matter, and does not live long.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent answers it.
    status = _HARNESS_FAILED
    recorder = _Recorder(file)
    recorder.add(header)
    try:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        with Kvm.open() as kvm:
            execute(kvm, header.scenario, recorder.add, recorder.flush)
        recorder.add(End(events=recorder.events))
        recorder.flush()
        status = 0
    except BaseException:
        recorder.flush()
        _write_all(file, history_line(End(_HARNESS + traceback.format_exc())))
    finally:
        os._exit(status)


class _Recorder:
    """Appends lines to the history, many at once."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._lines: list[bytes] = []
        self.events = 0

    def add(self, part: Header | Event | End) -> None:
        self._lines.append(history_line(part))
        self.events += isinstance(part, Event)

    def flush(self) -> None:
        if self._lines:
            _write_all(self._file, b"".join(self._lines))
            self._lines.clear()


def _wait(child: int, time_limit_s: float) -> str:
    """Wait for the child; return why its run was cut short, empty if it was not."""
    pidfd = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = bool(poll.poll(time_limit_s * 1000))
        reason = "" if ended else f"hung: no end within {time_limit_s:g} s; {_stuck_at(child)}"
    except KeyboardInterrupt:
        ended, reason = False, "interrupted"
    finally:
        os.close(pidfd)
    if not ended:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended and status < 0:
        reason = f"died: {signal.Signals(-status).name}"
    return reason


def _stuck_at(child: int) -> str:
    """Return the kernel stacks of a process's threads, as far as they can be read."""
    stacks = []
    for thread in sorted(Path(f"/proc/{child}/task").iterdir()):
        try:
            lines = (thread / "stack").read_text().split("\n")
        except OSError as error:
            return f"kernel stack not readable: {error.strerror}"
        stacks.append(" < ".join(line.split(" ", 1)[-1] for line in lines if line))
    return "kernel stack: " + ("; ".join(filter(None, stacks)) or "none, it runs in user space")


def _read_back(file: int, name: str) -> History:
    size_bytes = os.fstat(file).st_size
    history = parse_history(os.pread(file, size_bytes, 0).split(b"\n"), name)
    if history.end is not None and history.end.reason.startswith(_HARNESS):
        raise HarnessError(f"{name}: {history.end.reason}")
    return history


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
