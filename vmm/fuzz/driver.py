"""The run of a fuzzer: its workers, the watch over them, the budget, and what they find."""

import math
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

from vmm.fuzz import corpus
from vmm.fuzz.endings import ending, known_hang
from vmm.fuzz.findings import Finding
from vmm.fuzz.interruption import Interruption
from vmm.fuzz.journal import Interrupted, journal_path, read_journal
from vmm.fuzz.messages import (
    AnyMessage,
    Best,
    Complains,
    Differs,
    Ended,
    Failed,
    Fresh,
    Minimised,
    Progress,
    receive,
)
from vmm.fuzz.minimise.queue import Queue
from vmm.fuzz.tally import Plan, Tally
from vmm.fuzz.worker import Assignment, run_worker
from vmm.host.child import Child, name_of
from vmm.host.cpus import allowed
from vmm.host.health import KernelWatch, Problem
from vmm.host.hostinfo import HostInfo
from vmm.host.pauses import Pauses, Starvation
from vmm.scenario.endings import DIED, HARNESS, HOST, HUNG, of_the_host, why_failed
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.verdict.identity import Identity

_TICK_S = 0.1
_SILENCE_S = 30.0
"""How long a worker may send nothing: the longest scenarios take a second or two."""

_MAX_RESTARTS = 8
_STOPPED = "stopped"
_OUTSIDE = "the host: a worker was killed or stopped from outside, perhaps for want of memory"
_FROM_OUTSIDE = tuple(
    f"died: {number.name}"
    for number in (
        signal.SIGKILL,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGXCPU,
    )
)
"""Deaths that say nothing about KVM unless the kernel complains: an oops looks the same."""


@dataclass(slots=True)
class _WorkerState:
    """A worker's state, which survives its process."""

    number: int
    child: Child
    journal: Path
    last_message: float
    first: int = 0
    failed: bool = False
    operations: int = 0
    starvation: Starvation = field(default_factory=Starvation)

    def heard(self) -> None:
        """Note that the worker has just sent something."""
        self.last_message = time.monotonic()
        self.starvation.begin(self.child.starved_s())

    def is_silent(self) -> bool:
        """Whether it has sent nothing for too long, other than for want of a CPU."""
        silent_s = time.monotonic() - self.last_message
        if silent_s <= _SILENCE_S:
            return False
        starved_s = self.starvation.counted_s(self.child.starved_s(), _SILENCE_S)
        return silent_s - starved_s > _SILENCE_S


class Fuzzer:
    """One run of ``vmm fuzz``. ``show`` draws the tally; it must not start threads."""

    def __init__(
        self,
        plan: Plan,
        features: Features,
        host: HostInfo,
        bases: tuple[Scenario, ...],
        show: Callable[[Tally], None],
    ) -> None:
        self.tally = Tally()
        self._plan = plan
        self._features = features
        self._facts = host.in_brief()
        self._bases = bases
        self._show = show
        self._workers: list[_WorkerState] = []
        self._causes: set[Identity] = set()
        self._held: list[Differs] = []
        self._finished = 0
        self._queue = Queue(plan, features, host, self.tally)
        self._name = secrets.token_hex(4)
        self._cpus = sorted(allowed())
        self._restarts = 0
        self._avoids: frozenset[str] = frozenset()
        self._pauses = Pauses()
        self._started = time.monotonic()
        self._made_out = False

    def run(self, interruption: Interruption) -> Tally:
        """Run until the budget is spent, something stops it, or it is interrupted.

        Afterwards, unless interrupted, what was found is minimised and written for some time
        longer.
        """
        tally = self.tally
        self._made_out = not self._plan.out.exists()
        self._plan.out.mkdir(parents=True, exist_ok=True)
        try:
            with KernelWatch() as watch:
                for number in range(self._plan.jobs):
                    if not interruption.asked:
                        self._start_worker(number, self._plan.index(number))
                while not (self._spent() or interruption.asked):
                    self._poll(watch, self._left_s())
                if self._is_budget_spent():
                    self._hear_all(watch, interruption)
            self._end_workers()
            self._handle_held()
            self._finish(interruption)
        except KeyboardInterrupt:
            interruption.asked = True
        except OSError as error:
            tally.end_early(of_the_host(error))
        finally:
            self._handle_held()
            self._end()
        if interruption.asked:
            tally.note("interrupted")
            tally.ended_early |= self._plan.is_bounded and not self._is_budget_spent()
        return tally

    def _hear_all(self, watch: KernelWatch, interruption: Interruption) -> None:
        """Wait for one more message of each worker: one that sends none hangs."""
        over = time.monotonic()
        while self._workers and not (interruption.asked or self.tally.ended_early):
            self._poll(watch, self._left_s())
            for worker in tuple(self._workers):
                if worker.last_message > over:
                    self._workers.remove(worker)
                    self._end_worker(worker)

    def _finish(self, interruption: Interruption) -> None:
        """Minimise and write what was found, in the rest of the budget and the overtime."""
        begun = time.monotonic()
        counted_from = begun
        if self._plan.seconds is not None:
            counted_from = self._started + self._plan.seconds
        while self._queue.pending and not interruption.asked:
            left_s = counted_from + self._plan.overtime_s - time.monotonic()
            if left_s <= 0:
                return
            self._poll(None, left_s)
            self.tally.overtime = time.monotonic() - begun

    def _start_worker(self, number: int, first: int, done: int = 0) -> None:
        """Start a worker at the scenario ``first``, with ``done`` operations of its share done."""
        plan = self._plan
        cpu = self._cpus[number % len(self._cpus)]
        journal = journal_path(plan.out, self._name, number)
        assignment = Assignment(
            seed=plan.seed,
            shard=plan.shard,
            first=first,
            step=plan.step,
            features=self._features,
            bases=self._bases,
            keeps=plan.corpus is not None,
            journal=journal,
            cpu=cpu,
            process=name_of(number),
            host=self._facts,
            end=plan.end,
            operations=None if plan.share is None else plan.share - done,
            avoids=self._avoids,
        )
        child = Child.start(partial(run_worker, assignment), assignment.process, why_failed)
        worker = _WorkerState(number, child, journal, time.monotonic(), first, operations=done)
        self._workers.append(worker)

    def _left_s(self) -> float:
        """Return how much time is left, minimising included."""
        plan = self._plan
        if plan.seconds is None:
            return math.inf
        return self._started + plan.seconds + plan.overtime_s - time.monotonic()

    def _spent(self) -> bool:
        tally = self.tally
        if tally.ended_early or not self._workers or self._is_budget_spent():
            return True
        found = len(tally.findings) + len(tally.again) + self._queue.pending
        held = {each.identity.cause for each in self._held}
        return found + len(held) >= self._plan.max_findings

    def _is_budget_spent(self) -> bool:
        plan = self._plan
        if plan.seconds is not None and time.monotonic() - self._started >= plan.seconds:
            return True
        return plan.counts and self._finished == plan.jobs

    def _poll(self, watch: KernelWatch | None, left_s: float) -> None:
        """Handle the messages of workers, check workers that send none, and show the tally."""
        queue = self._queue
        queue.begin(self._cpus[0], left_s)
        minimiser = queue.connection
        listening = [worker.child.connection for worker in self._workers]
        ready = wait([*listening, minimiser] if minimiser else listening, _TICK_S)
        paused_s = self._pauses.look(lambda: False)
        for worker in self._workers:
            worker.last_message += paused_s  # Workers were stopped together with this process.
        for worker in tuple(self._workers):
            if worker.child.connection in ready:
                self._receive(worker, watch)
            elif worker.is_silent():
                self._replace(worker, _silence(worker.child), watch)
        if minimiser in ready:
            queue.receive()
        queue.check_time()
        if self._workers:
            self.tally.seconds = time.monotonic() - self._started
        self._show(self.tally)

    def _receive(self, worker: _WorkerState, watch: KernelWatch | None) -> None:
        try:
            message = receive(worker.child.connection)
        except EOFError:
            self._replace(worker, "", watch)
            return
        worker.heard()
        match message:
            case Ended():
                self._workers.remove(worker)
                self._end_worker(worker)
                self._finished += 1
                return
            case Failed():
                worker.failed = True
            case Progress(operations=operations):
                worker.operations += operations
            case _:
                pass
        self._handle(message)

    def _handle(self, message: AnyMessage) -> None:
        tally, plan = self.tally, self._plan
        match message:
            case Progress(scenarios, operations, inconclusive, known, covered):
                tally.scenarios += scenarios
                tally.operations += operations
                tally.inconclusive += inconclusive
                tally.known += known
                tally.covered.update(covered)
            case Fresh(scenario):
                if plan.corpus is not None and corpus.keep(plan.corpus, scenario):
                    tally.kept += 1
            case Differs():
                if plan.counts:
                    self._held.append(message)
                else:
                    self._differs(message)
            case Complains(scenario, headline, lines):
                complaint = Identity("complaint", outcome=headline)
                if complaint not in self._causes:
                    self._causes.add(complaint)
                    self._queue.write(self._finding(scenario, complaint, lines))
            case Failed(reason, is_host, scenario):
                if is_host:
                    tally.end_early(f"the host: {reason}")
                else:
                    tally.failure = reason
                    tally.note(f"{scenario.name if scenario else 'a worker'}: internal error")
            case Best() | Minimised() | Ended():
                raise AssertionError("workers do not minimise, and their end is handled before")

    def _handle_held(self) -> None:
        """Handle the differences that were held, shortest first, whichever worker was faster."""
        for each in sorted(self._held, key=_order):
            self._differs(each)
        self._held.clear()

    def _differs(self, message: Differs) -> None:
        scenario, identity = message.scenario, message.identity
        if identity.cause in self._causes:
            self._queue.keep_example(scenario, identity)
        else:
            self._causes.add(identity.cause)
            found = self._finding(scenario, identity)
            self._queue.add(replace(found, before=message.before))

    def _finding(
        self,
        scenario: Scenario,
        identity: Identity,
        log: tuple[str, ...] = (),
        journal: bytes = b"",
    ) -> Finding:
        return Finding(
            scenario,
            identity,
            self._plan.seed,
            found_with=len(scenario.operations),
            seconds=time.monotonic() - self._started,
            log=log,
            journal=journal,
        )

    def _replace(self, worker: _WorkerState, how: str, watch: KernelWatch | None) -> None:
        """Replace a worker process that died or hangs."""
        self._workers.remove(worker)
        died = worker.child.end()
        how = how if how.startswith(_STOPPED) else died or how or f"{DIED}exit status 0"
        left = read_journal(worker.journal) if worker.journal.exists() else None
        journal = b"" if left is None else worker.journal.read_bytes()
        worker.journal.unlink(missing_ok=True)  # A process that cannot be killed keeps it locked.
        if self.tally.ended_early:
            return
        if how.startswith(HOST):
            self.tally.end_early(how)
            return
        problems = watch.news() if watch else ()
        from_outside = how.startswith(_STOPPED) or (how in _FROM_OUTSIDE and not problems)
        if from_outside:
            self.tally.note(f"{_OUTSIDE}: {how}; what ran then is left out")
            self.tally.disturbed = True
        elif not worker.failed:
            if left is None or how.startswith(HARNESS):
                self._end_with(how)
                return
            self._ended(left, how, journal, problems)
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            self.tally.end_early(f"{self._restarts} workers hung, died or failed")
            return
        if self._is_budget_spent():
            return
        first = worker.first if left is None else left.intent.next_index
        self._start_worker(worker.number, first, worker.operations)

    def _end_with(self, how: str) -> None:
        """End the run for a worker that died of our own error, or before it ran anything."""
        if how.startswith(HARNESS):
            self.tally.failure = how.removeprefix(HARNESS)
            self.tally.ended_early = True
        else:
            self.tally.end_early(f"a worker {how}; nothing says what it ran")

    def _ended(
        self, left: Interrupted, how: str, journal: bytes, problems: Sequence[Problem]
    ) -> None:
        """Note what a worker was running when it hung or died."""
        scenario = left.under_way[0] if left.under_way else left.intent.scenarios[-1]
        self.tally.note(f"{scenario.name} {how}")
        if how.startswith(HUNG) and not problems:
            issue = known_hang(scenario, self._features, self._facts)
            if issue is not None:
                # Each such scenario would cost the time in which a worker is waited for.
                self.tally.known += 1
                self.tally.note(f"known issue {issue.name}: what may meet it is left out from now")
                self._avoids |= {issue.name}
                return
        lines = (how, *(line for problem in problems for line in problem.excerpt))
        finding = self._finding(scenario, ending(how), lines, journal)
        if how.endswith("cannot be killed"):
            self._queue.write(finding, time_limit_s=0.0)  # Running it again would hang, too.
        else:
            self._queue.add(finding)

    def _end_workers(self) -> None:
        for worker in self._workers:
            self._end_worker(worker)
        self._workers.clear()

    def _end_worker(self, worker: _WorkerState) -> None:
        worker.child.end()
        worker.journal.unlink(missing_ok=True)

    def _end(self) -> None:
        """End all processes, remove journals, and write what was not minimised."""
        self._end_workers()
        self._queue.close()
        if self._made_out and self._plan.out.exists() and not any(self._plan.out.iterdir()):
            self._plan.out.rmdir()


def _order(message: Differs) -> tuple[int, str, str]:
    return len(message.scenario.operations), message.scenario.name, str(message.identity)


def _silence(child: Child) -> str:
    """Return the state of a worker that has sent nothing for too long."""
    if child.is_stopped():
        return f"{_STOPPED}: somebody sent SIGSTOP"
    return f"hung: nothing heard for {_SILENCE_S:g} s; {child.stack()}"
