"""Executes a race: a thread for each host thread and each vCPU, with the moments of all they do.

System calls release the GIL, so that the kernel gets them at the same time. A moment is taken
before each invocation and after each response: the call takes effect between the two.
"""

import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import assert_never

from vmm.execution.hostmemory import HostMemory
from vmm.execution.machine import Machine
from vmm.host.cpus import FOUND, stay_on
from vmm.scenario.history import (
    AnyOutcome,
    Call,
    CallOutcome,
    DirtyPages,
    Done,
    Met,
    Raced,
    Refused,
    RingPages,
    Seen,
    Window,
)
from vmm.scenario.operations import (
    ChangeHostMemory,
    ClearDirtyLog,
    CloseGuestMemfd,
    Execute,
    GetDirtyLog,
    GuestThread,
    HarvestDirtyRing,
    HostAction,
    HostThread,
    HostWrite,
    PreFaultMemory,
    PunchGuestMemfd,
    Race,
    ResetDirtyRings,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    Touch,
)
from vmm.scenario.windows import in_window

_SWITCH_INTERVAL_S = 5e-5
"""How long a thread may keep the GIL: windows should be short."""

_OtherAction = (
    SetUserMemoryRegion
    | GetDirtyLog
    | ClearDirtyLog
    | HostWrite
    | ChangeHostMemory
    | CloseGuestMemfd
    | PunchGuestMemfd
    | SetMemoryAttributes
)

_MANY_TIMES = 8
"""If so many harvests in a row find a full ring empty, another thread is not the reason."""


def run_race(race: Race, machine: Machine, memory: HostMemory) -> Raced:
    """Run the threads of a race, wait for all of them, and return their outcomes.

    Raises what a thread raised: a fault of this program.
    """
    run = _Run(machine, memory)
    guests = [_Guest(run, index, thread) for index, thread in enumerate(race.guests)]
    hosts = [_Host(run, thread, guests) for thread in race.hosts]
    counted = [host for host, thread in zip(hosts, race.hosts, strict=True) if thread.rounds]
    with _short_turns(), _all_ended(run, (*guests, *hosts)):
        for guest in guests:
            guest.start()
        # Every vCPU has mapped the initial state before it changes.
        run.wait_until(lambda: all(guest.ended or guest.windows for guest in guests))
        for host in hosts:
            host.start()
        for host in counted:
            host.join()
        run.counted_over = True
        for host in hosts:
            host.join()
        if hosts:
            run.over = True
        for guest in guests:
            guest.join()
    if run.errors:
        raise run.errors[0]
    return Raced(
        tuple(tuple(host.calls) for host in hosts),
        tuple(tuple(guest.windows) for guest in guests),
        tuple(tuple(guest.seen) for guest in guests),
        tuple(memory.changes()),
        tuple(tuple(guest.helped) for guest in guests if machine.rings.exist),
        tuple(machine.rings.harvest(i) for i in range(len(guests)) if machine.rings.exist),
    )


@contextmanager
def _all_ended(run: "_Run", threads: Sequence["_Thread"]) -> Iterator[None]:
    """If the block fails, end the threads that it has started: what they use is freed after it."""
    try:
        yield
    except BaseException:
        run.over = True
        run.note_progress()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        raise


class _Run:
    """What the threads share."""

    def __init__(self, machine: Machine, memory: HostMemory) -> None:
        self.machine = machine
        self.memory = memory
        self.moment = itertools.count().__next__
        self._harvesting = threading.Lock()
        self._resetting = threading.Lock()
        self.counted_over = False
        self.over = False
        self.progress = threading.Condition()
        self.errors: list[BaseException] = []

    def harvest(self, vcpu: int) -> Call:
        """Harvest a ring. Harvests never overlap, so that their order is known."""
        with self._harvesting:
            begin, found = self.moment(), self.machine.rings.harvest(vcpu)
            return Call(begin, self.moment(), found)

    def reset(self) -> Call:
        """Reset all rings. Resets never overlap, so that their order is known."""
        with self._resetting:
            begin, outcome = self.moment(), self.machine.rings.reset_meanwhile()
            return Call(begin, self.moment(), outcome)

    def note_progress(self) -> None:
        """Wake all waiting threads."""
        with self.progress:
            self.progress.notify_all()

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is checked whenever a window or a thread has ended."""
        with self.progress:
            self.progress.wait_for(holds)


class _Thread(threading.Thread):
    """A thread whose failure ends the race."""

    def __init__(self, run: _Run) -> None:
        super().__init__(daemon=True)
        self._race = run
        self.ended = False

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._race.errors.append(error)
            self._race.over = True
        finally:
            self.ended = True
            self._race.note_progress()

    def _work(self) -> None:
        raise NotImplementedError


class _Guest(_Thread):
    """Runs a vCPU's program, window after window."""

    def __init__(self, run: _Run, index: int, thread: GuestThread) -> None:
        super().__init__(run)
        self._index = index
        self._cpu = run.machine.racing_cpu(index, self._make_room)
        self._program = thread.program
        self._limit = thread.windows
        self._migrates = thread.migrates
        self.windows: list[Window] = []
        self.seen: dict[Seen, int] = {}
        self.helped: list[Call] = []
        self._in_vain = 0
        self._is_over = False

    def _work(self) -> None:
        # Guests use all CPUs; host threads stay on this process's, where grace periods are short.
        stay_on(FOUND)
        if not self._migrates:
            self._go_on(self._limit)
        while self._migrates and not self._is_over and len(self.windows) < self._limit:
            self._go_on_elsewhere()
        self._cpu.look_at(0)  # The next user expects the vCPU outside of SMM.

    def _go_on_elsewhere(self) -> None:
        """Let a new thread run the vCPU for some windows, and raise what it raises."""
        errors: list[BaseException] = []

        def work() -> None:
            try:
                stay_on(FOUND)
                self._go_on(min(self._limit, len(self.windows) + self._migrates))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]

    def _go_on(self, limit: int) -> None:
        """Run windows until there are ``limit``, or the race is over."""
        race, windows = self._race, self.windows
        for number in range(len(windows), limit):
            last = race.over
            begin, end, outcomes = self._window(number)
            seen = self.seen.setdefault(outcomes, len(self.seen))
            windows.append(Window(begin, end, seen))
            race.note_progress()
            if last:
                # One whole window has begun after all calls, so the final state is seen, too.
                self._is_over = True
                break

    def _window(self, number: int) -> tuple[int, int, Seen]:
        first = self._program[0]
        moment = self._race.moment
        if isinstance(first, Execute):
            begin = moment()
            outcomes = [self._cpu.execute(first)]
            return begin, moment(), _seen(outcomes)
        steps = [in_window(op, number) for op in self._program if not isinstance(op, Execute)]
        begin = moment()
        outcomes = list(self._made(steps))
        return begin, moment(), _seen(outcomes)

    def _made(self, steps: Sequence[Touch | PreFaultMemory]) -> Iterator[AnyOutcome]:
        """Yield the outcomes of steps; consecutive touches of an address space share a KVM_RUN."""
        for _, stretch in groupby(steps, _kind):
            alike = list(stretch)
            touches = [op for op in alike if isinstance(op, Touch)]
            if touches:
                yield from self._cpu.touch(touches)
            yield from (self._cpu.pre_fault(op) for op in alike if isinstance(op, PreFaultMemory))

    def _make_room(self) -> bool:
        """Harvest the ring that stopped the vCPU, and reset all; False if that does not help."""
        if not self._race.machine.rings.exist:
            return False
        found = self._race.harvest(self._index)
        self.helped += [found, self._race.reset()]
        # Another thread may have emptied it first.
        in_vain = found.outcome == RingPages()
        self._in_vain = self._in_vain + 1 if in_vain else 0
        return self._in_vain < _MANY_TIMES


class _Host(_Thread):
    """Repeats the operations of a host thread."""

    def __init__(self, run: _Run, thread: HostThread, guests: Sequence[_Guest]) -> None:
        super().__init__(run)
        self._thread = thread
        self._guests = guests
        self.calls: list[Call] = []

    def _work(self) -> None:
        race = self._race
        for _ in self._rounds():
            for operation in self._thread.operations:
                if race.errors:
                    return
                self.calls.append(self._call(operation))
                if self._thread.pause:
                    self._wait()

    def _rounds(self) -> Iterator[int]:
        if self._thread.rounds:
            return iter(range(self._thread.rounds))
        return itertools.takewhile(lambda _: not self._race.counted_over, itertools.count())

    def _call(self, op: HostAction) -> Call:
        if isinstance(op, HarvestDirtyRing):
            return self._race.harvest(op.vcpu)
        if isinstance(op, ResetDirtyRings):
            return self._race.reset()
        begin, outcome = self._race.moment(), self._perform(op)
        return Call(begin, self._race.moment(), outcome)

    def _perform(self, op: _OtherAction) -> CallOutcome:
        machine, memory = self._race.machine, self._race.memory
        match op:
            case SetUserMemoryRegion():
                return _answer(machine.set_region(op))
            case GetDirtyLog():
                return _answer(machine.get_dirty_log(op))
            case ClearDirtyLog():
                return _answer(machine.clear_dirty_log(op))
            case HostWrite():
                return memory.write(op.place, op.value)
            case CloseGuestMemfd():
                return _answer(machine.files.close(op))
            case PunchGuestMemfd():
                return _answer(machine.files.punch(op))
            case SetMemoryAttributes():
                return _answer(machine.set_memory_attributes(op))
            case ChangeHostMemory():
                return memory.change(op)
            case _:
                assert_never(op)

    def _wait(self) -> None:
        """Wait until every vCPU has ended ``pause`` windows that begin after now."""
        # One more, since the current window began earlier.
        goals = [(g, len(g.windows) + self._thread.pause + 1) for g in self._guests]
        self._race.wait_until(lambda: all(g.ended or len(g.windows) >= goal for g, goal in goals))


def _kind(step: Touch | PreFaultMemory) -> int:
    return step.as_id if isinstance(step, Touch) else -1


def _seen(outcomes: Sequence[AnyOutcome]) -> Seen:
    seen = tuple(each for each in outcomes if isinstance(each, Met))
    assert len(seen) == len(outcomes), "a step of a program has another outcome"
    return seen


def _answer(outcome: AnyOutcome) -> CallOutcome:
    assert isinstance(outcome, Done | Refused | DirtyPages), "a call has another outcome"
    return outcome


@contextmanager
def _short_turns() -> Iterator[None]:
    """Make Python switch threads quickly."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
