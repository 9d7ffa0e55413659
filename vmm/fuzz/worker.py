"""A worker: a process that generates scenarios, runs and judges them, and reports what it found."""

import gc
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from vmm.fuzz.generate.dice import seed_of
from vmm.fuzz.generate.scenarios import generate
from vmm.fuzz.journal import Intent, Journal
from vmm.fuzz.messages import Complains, Differs, Ended, Failed, Fresh, Progress, failed, send
from vmm.fuzz.minimise.join import MOST_OPERATIONS
from vmm.fuzz.novelty import Novelty
from vmm.fuzz.trial import attempt, shortened
from vmm.host.cpus import stay_on
from vmm.host.health import KernelWatch, without_others
from vmm.kvm.system import Kvm
from vmm.scenario.endings import HOST
from vmm.scenario.features import Features
from vmm.scenario.history import Header
from vmm.scenario.operations import Scenario
from vmm.verdict.identity import Identity
from vmm.verdict.judge import Status
from vmm.verdict.known.weighing import issues_met

_INTENT_OPERATIONS = 400
"""Short scenarios share an intent, since each intent waits for the disk."""

_EXAMPLES = 6
"""How many scenarios of one kind are reported: one may differ only after what ran before."""

_REPORT_EVERY_S = 0.25
_COLLECT_EVERY = 64


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker has to do.

    It runs the scenarios ``first``, ``first + step``, ... of a seed. ``shard`` (I, N) is only for
    the journal. Mutations start from ``bases``; ``keeps`` asks it to report scenarios that cover
    something new. ``process`` is its name in the kernel's log, and ``host`` decides which issues
    are known; scenarios that may meet one whose name it ``avoids`` are left out. It stops before
    the scenario ``end``, or after this many ``operations``; None is no limit.
    """

    seed: int
    shard: tuple[int, int]
    first: int
    step: int
    features: Features
    bases: tuple[Scenario, ...]
    keeps: bool
    journal: Path
    cpu: int
    process: str
    host: dict[str, str]
    end: int | None = None
    operations: int | None = None
    avoids: frozenset[str] = frozenset()

    def leaves_out(self, scenario: Scenario) -> bool:
        """Whether a scenario may meet an issue that is avoided."""
        if not self.avoids:
            return False
        header = Header(scenario, self.features, self.host)
        return bool(issues_met(header, lambda issue: issue.name in self.avoids))


def run_worker(assignment: Assignment, to: Connection) -> None:
    """Run scenarios until this process is ended; the body of a worker."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # The parent handles it.
    stay_on({assignment.cpu})
    worker = None
    try:
        journal = Journal(assignment.journal)
        with Kvm.open() as kvm, KernelWatch() as watch:
            worker = _Worker(assignment, kvm, watch, journal, to)
            worker.run()
    except Exception as error:
        send(to, failed(error, worker.scenario if worker else None))


class _Worker:
    """The loop of a worker, and what it has to report."""

    def __init__(
        self,
        assignment: Assignment,
        kvm: Kvm,
        watch: KernelWatch,
        journal: Journal,
        to: Connection,
    ) -> None:
        self._assignment = assignment
        self._kvm = kvm
        self._watch = watch
        self._journal = journal
        self._to = to
        self._novelty = Novelty()
        self._seen: Counter[Identity] = Counter()
        self._scenarios = self._operations = self._inconclusive = self._known = 0
        self._before: deque[Scenario] = deque()
        self._kept = 0
        self._left = assignment.operations
        self._reported_at = time.monotonic()
        self.scenario: Scenario | None = None

    def run(self) -> None:
        # Reference cycles are few: they are collected between intents.
        gc.disable()
        gc.freeze()
        for number, scenarios in enumerate(self._intents()):
            for scenario in scenarios:
                if self._left is not None and self._left <= 0:
                    break
                self.scenario = scenario
                if self._assignment.leaves_out(scenario):
                    self._known += 1
                else:
                    self._run(scenario)
                self._journal.ended()
            if number % _COLLECT_EVERY == 0:
                gc.collect()
        self._report()
        send(self._to, Ended())

    def _intents(self) -> Iterator[tuple[Scenario, ...]]:
        """Yield groups of scenarios that the journal names."""
        work = self._assignment
        index = work.first
        while self._may_go_on(index):
            group: list[Scenario] = []
            size = 0
            begun_at = index
            while size < _INTENT_OPERATIONS and self._may_go_on(index):
                scenario = generate(seed_of(work.seed, index), work.features, work.bases)
                group.append(scenario)
                size += len(scenario.operations)
                index += work.step
            self._journal.begin(Intent(work.seed, work.shard, begun_at, work.step, tuple(group)))
            yield tuple(group)

    def _may_go_on(self, index: int) -> bool:
        end = self._assignment.end
        return (end is None or index < end) and (self._left is None or self._left > 0)

    def _run(self, scenario: Scenario) -> None:
        self._novelty.begin()
        work = self._assignment
        trial = attempt(self._kvm, scenario, work.features, self._novelty, work.host)
        self._scenarios += 1
        self._operations += trial.events
        if self._left is not None:
            self._left -= trial.events
        self._inconclusive += trial.verdict.status is Status.INCONCLUSIVE
        identity = trial.identity
        if trial.verdict.reason.startswith(HOST):
            send(self._to, Failed(trial.verdict.reason.removeprefix(HOST), is_host=True))
            raise SystemExit
        self._known += trial.is_known
        if identity is not None and not trial.is_known and self._seen[identity] < _EXAMPLES:
            self._seen[identity] += 1
            self._report()  # Before the finding, after which the parent may stop listening.
            before = tuple(self._before)
            send(self._to, Differs(shortened(scenario, trial), identity, before))
        self._keep(scenario)
        for problem in without_others(self._watch.news(), self._assignment.process):
            self._report()
            send(self._to, Complains(scenario, problem.what, problem.excerpt))
        if self._assignment.keeps and self._novelty.fresh and identity is None:
            send(self._to, Fresh(scenario))
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_EVERY_S:
            self._reported_at = now
            self._report()

    def _keep(self, scenario: Scenario) -> None:
        """Keep what ran last: a later difference may depend on it."""
        before = self._before
        before.append(scenario)
        self._kept += len(scenario.operations)
        while self._kept > MOST_OPERATIONS and len(before) > 1:
            self._kept -= len(before.popleft().operations)

    def _report(self) -> None:
        done = Progress(
            self._scenarios,
            self._operations,
            self._inconclusive,
            self._known,
            self._novelty.take(),
        )
        self._scenarios = self._operations = self._inconclusive = self._known = 0
        send(self._to, done)
