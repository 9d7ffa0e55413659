"""Runs scenarios in a child process, where a hang or a crash is an ending like any other.

The child appends to a tape that outlives it; the parent waits with a time limit and reads the tape.
So there is a history whatever the kernel did to the child.
"""

import gc
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from kvm_abi.raw import KvmError, WrongAnswerError
from vmm.execution.callers import set_up_refused
from vmm.execution.executor import Recorder, execute
from vmm.execution.guesttime import GUEST_LIMIT_S
from vmm.execution.owntime import OwnTime
from vmm.execution.tape import FileTape, MemoryTape, Tape
from vmm.host.child import Child
from vmm.host.cpus import stay_on
from vmm.host.pauses import LOOK_EVERY_S, Pauses, Starvation
from vmm.kvm.closing import Closing
from vmm.kvm.system import Kvm
from vmm.scenario.codec import has_ended, history_line, parse_history
from vmm.scenario.demand import demand
from vmm.scenario.endings import (
    DIED,
    HARNESS,
    HOST,
    HUNG,
    INTERRUPTED,
    REFUSED,
    of_the_host,
    why_failed,
)
from vmm.scenario.features import Features
from vmm.scenario.history import End, Event, Header, History
from vmm.scenario.operations import Scenario
from vmm.scenario.plan import steps

TIME_LIMIT_S = 20.0
OPERATION_LIMIT_S = 0.002
"""What each operation adds to a scenario's time limit: ten times what a slot ioctl may take.

If a scenario's estimated demand (see `demand`) is longer, that is its limit.
"""

JOURNAL_OPERATION_LIMIT_S = 0.1
"""The same with a journal, which waits for its disk at each step: 10 ms, or more if it is slow."""

_ANSWER = b"x"
"""What a child sends at the end of a scenario, followed by why it could not record the end."""


class HarnessError(RuntimeError):
    """This program failed, which says nothing about the kernel."""


def run_isolated(
    scenario: Scenario,
    features: Features,
    *,
    time_limit_s: float | None = None,
    host: dict[str, str] | None = None,
    journal: Path | None = None,
    patience: float = 1.0,
) -> History:
    """Execute a scenario in its own child process, and return its history.

    It may take ``time_limit_s``, or ``patience`` times the usual limit. ``journal`` is a file to
    which the history is written as it happens; what was recorded is on disk before the next
    operation begins. Raises HarnessError if this program fails.
    """
    header = Header(scenario, features, host or {})
    with Worker([header], journal=journal, patience=patience) as worker:
        worker.start(0)
        return _history_of(worker.wait(time_limit_s))


def run_unless_interrupted(header: Header, time_limit_s: float | None = None) -> History:
    """Do the same, and raise a KeyboardInterrupt again, which otherwise is the history's end."""
    with Worker([header]) as worker:
        worker.start(0)
        record = worker.wait(time_limit_s)
    if record.reason == INTERRUPTED:
        raise KeyboardInterrupt
    return _history_of(record)


def _history_of(record: "Record") -> History:
    history = record.history()
    if history.end is not None and history.end.reason.startswith(HARNESS):
        raise HarnessError(f"{history.header.scenario.name}: {history.end.reason}")
    return history


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a scenario: its history as bytes, to be parsed later.

    ``reason`` says what went wrong with the run itself (see `vmm.scenario.endings`), or that it
    was interrupted.
    """

    header: Header
    data: bytes
    reason: str = ""

    def history(self) -> History:
        """Return the history."""
        name = self.header.scenario.name
        return parse_history(self.data.split(b"\n"), name, self.header)


class Worker(Closing):
    """A child process that executes scenarios, one after the other, each on its own VM.

    If it hangs or dies in a scenario, the next one gets a new child. A record that `wait` has
    returned is complete, so that the next scenario can start before it is parsed.
    """

    def __init__(
        self,
        headers: Sequence[Header],
        *,
        journal: Path | None = None,
        cpu: int | None = None,
        patience: float = 1.0,
        process: str = "",
    ) -> None:
        """Take the scenarios that ``start`` will name by index, and a CPU to stay on.

        Without an explicit limit, time limits are ``patience`` times the usual ones. ``process`` is
        the child's name, as it appears in the kernel's log.
        """
        self._headers = headers
        self._cpu = cpu
        self._tape: Tape = MemoryTape() if journal is None else FileTape(journal)
        self._patience = patience
        self._operation_limit_s = OPERATION_LIMIT_S
        if journal is not None:
            self._operation_limit_s = JOURNAL_OPERATION_LIMIT_S
        self._child: Child | None = None
        self._process = process
        self._index = 0
        self._is_under_way = self._is_interrupted = False
        self._limit_s = self._deadline = 0.0
        self._may_take_longer = False
        self._own = OwnTime()
        self._pauses = Pauses()
        self._starvation = Starvation()

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._is_under_way:
            self._break_off(INTERRUPTED)
        self._end_child()
        self._tape.close()
        self._own.close()

    def start(self, index: int, limit_s: float | None = None) -> None:
        """Let the child begin a scenario; it may take ``limit_s``, or else the usual limit."""
        self._index = index
        self._own.reset()
        self._tape.clear()
        self._is_under_way = True
        operations = len(self._headers[index].scenario.operations)
        self._limit_s = (TIME_LIMIT_S + self._operation_limit_s * operations) * self._patience
        self._may_take_longer = limit_s is None
        if limit_s is not None:
            self._limit_s = limit_s
        self._deadline = time.monotonic() + self._limit_s
        self._pauses.reset()
        order = index.to_bytes(4, "little")
        try:
            self._worker().connection.send_bytes(order)
        except ConnectionError:  # The child has died since the last scenario.
            self._end_child()
            self._worker().connection.send_bytes(order)
        self._starvation.begin(self._worker().starved_s())

    def _worker(self) -> Child:
        if self._child is None:
            serve = partial(
                _serve,
                self._headers,
                self._tape,
                self._cpu,
                GUEST_LIMIT_S * self._patience,
                self._own,
            )
            self._child = Child.start(serve, self._process, why_failed)
        return self._child

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def ended(self) -> bool:
        """Whether `wait` would return at once."""
        return self._child is None or self._is_interrupted or self._child.answered(0)

    def interrupt(self) -> None:
        """Make the next `wait` break off the scenario under way."""
        self._is_interrupted = True

    def wait(self, time_limit_s: float | None = None) -> Record:
        """Wait for the end of the scenario, break it off if it takes too long, and return it."""
        assert self._child is not None, "nothing was started"
        if time_limit_s is not None:
            self._limit_s, self._deadline = time_limit_s, time.monotonic() + time_limit_s
            self._may_take_longer = False
        reason = INTERRUPTED if self._is_interrupted else self._ending(self._child)
        data = self._break_off(reason) if reason else self._tape.read()
        self._is_under_way = self._is_interrupted = False
        return Record(self._headers[self._index], data, reason)

    @property
    def time_left_s(self) -> float:
        """How long the kernel may still take for the scenario under way."""
        more_s = self._own.spent_s() + self._pauses.seconds
        left_s = self._deadline + more_s - time.monotonic()
        if left_s <= 0 and self._may_take_longer:
            left_s += self._extend()
        if left_s <= 0 and self._child is not None:
            left_s += self._starvation.counted_s(self._child.starved_s(), self._limit_s)
        return max(left_s, 0)

    def wait_s(self) -> float:
        """Return how long to wait before calling this again; 0 if the scenario's time is over.

        So it is where the child was stopped for longer than the scenario may take.
        """
        assert self._child is not None, "nothing was started"
        self._pauses.look(self._child.is_stopped)
        if self._pauses.stopped_s > self._limit_s:
            return 0.0
        return min(self.time_left_s, LOOK_EVERY_S)

    def _extend(self) -> float:
        """Extend the limit to the scenario's estimated demand; return by how much.

        The estimate is made only once the usual limit is over, since there are thousands of
        scenarios.
        """
        self._may_take_longer = False
        may_take_s = demand(self._headers[self._index].scenario).seconds * self._patience
        more_s = max(may_take_s - self._limit_s, 0)
        self._limit_s += more_s
        self._deadline += more_s
        return more_s

    def fileno(self) -> int:
        """Return a descriptor that is readable once the scenario under way has ended."""
        assert self._child is not None, "nothing was started"
        return self._child.connection.fileno()

    def _ending(self, child: Child) -> str:
        """Wait for the child's answer; return why the end is not recorded, empty if it is."""
        try:
            while not child.answered(0):
                wait_s = self.wait_s()
                if not (wait_s or child.answered(0)):
                    return too_late(child, self._pauses, self._limit_s)
                child.answered(wait_s)
            return child.connection.recv_bytes().removeprefix(_ANSWER).decode()
        except (EOFError, ConnectionError):
            return child.end() or f"{DIED}exit status 0"
        except KeyboardInterrupt:
            return INTERRUPTED
        except OSError as error:  # Waiting itself has failed.
            return why_failed(error)

    def _break_off(self, reason: str) -> bytes:
        """End the child, and the history of the scenario under way; return that history.

        It is already complete if the child has just ended it.
        """
        self._is_under_way = False
        self._end_child()
        data = self._tape.read()
        data = data[: data.rfind(b"\n") + 1]
        if has_ended(data):
            return data
        missing = b"" if data else history_line(self._headers[self._index])
        missing += history_line(End(reason, data.count(b"\n") - 1 if data else 0))
        with suppress(OSError, OverflowError):  # If the tape is full, the record still has it.
            self._tape.mend()
            self._tape.append(missing)
        return data + missing


def long_enough(scenario: Scenario, least_s: float) -> float:
    """Return a time limit that a kernel which does not hang keeps: ``least_s`` or more."""
    return max(least_s, demand(scenario).seconds)


def too_late(child: Child, pauses: Pauses, limit_s: float) -> str:
    """Return why a child is broken off whose time is over, or that was stopped for longer."""
    if pauses.stopped_s > limit_s:
        return f"{HOST}its process was stopped (SIGSTOP) for {pauses.stopped_s:.0f} s"
    return f"{HUNG}no end within {limit_s:g} s; {child.stack()}"


def first_ended(workers: Sequence[Worker]) -> Worker:
    """Wait until a worker's scenario has ended, or its time is over, and return that worker.

    A KeyboardInterrupt interrupts all of them.
    """
    try:
        while not any(worker.ended() for worker in workers):
            waits = [worker.wait_s() for worker in workers]
            if not min(waits):
                return workers[waits.index(0)]
            connection.wait([worker.fileno() for worker in workers], min(waits))
    except KeyboardInterrupt:
        for worker in workers:
            worker.interrupt()
    return next(worker for worker in workers if worker.ended())


def _serve(
    headers: Sequence[Header],
    tape: Tape,
    cpu: int | None,
    guest_limit_s: float,
    own: OwnTime,
    orders: Connection,
) -> None:
    """Execute scenarios until the parent is gone: receive an index each time, send an answer."""
    gc.freeze()  # A collection would touch, and so copy, the inherited pages.
    if cpu is not None:
        stay_on({cpu})
    with suppress(EOFError, ConnectionError):
        while True:
            order = orders.recv_bytes()
            header_line = history_line(headers[int.from_bytes(order, "little")])
            reason = _carry_out(header_line, tape, guest_limit_s, own)
            orders.send_bytes(_ANSWER + reason.encode(errors="backslashreplace"))


def _carry_out(header_line: bytes, tape: Tape, guest_limit_s: float, own: OwnTime) -> str:
    """Run the scenario of a header and record it; return why its end is missing, else empty."""
    lines = _Lines(tape)
    # Parse a private copy: inherited pages are copied one by one as they are used, and each of
    # these faults makes KVM look for affected slots (its MMU notifier).
    header = msgspec.json.decode(header_line, type=Header)
    try:
        tape.append(header_line)
        reason = _run(header, lines, guest_limit_s, own)
        lines.add(End(reason, lines.events))
        lines.flush()
    except Exception as error:
        with suppress(Exception):  # The tape may be what has failed.
            lines.flush()
        return of_the_host(error) if isinstance(error, OverflowError) else why_failed(error)
    return ""


def _run(
    header: Header,
    lines: "_Lines",
    guest_limit_s: float,
    own: OwnTime,
) -> str:
    """Execute the scenario of a header; return why it ended early, else empty."""
    scenario, touch_limit = header.scenario, header.features.touch_limit
    try:
        kvm = Kvm.open()
    except (KvmError, WrongAnswerError) as error:
        first = next(steps(scenario, touch_limit))
        lines.add(Event(first.origin, first.operation, set_up_refused(error)))
        return f"{REFUSED}{error}"
    with kvm:
        where = Recorder(lines.add, lines.flush, own.counted)
        return execute(kvm, scenario, touch_limit, where, guest_limit_s)


class _Lines:
    """Collects lines of the history, and appends many at once."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._lines: list[bytes] = []
        self.events = 0

    def add(self, part: Event | End) -> None:
        self._lines.append(history_line(part))
        self.events += isinstance(part, Event)

    def flush(self) -> None:
        if self._lines:
            self._tape.append(b"".join(self._lines))
            self._lines.clear()
