"""The run: workers, their watch, the budget, and what becomes of what they find."""

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

from vmm.child import Child
from vmm.fuzz import corpus
from vmm.fuzz.findings import Finding, write
from vmm.fuzz.journal import journal_path, read_journal
from vmm.fuzz.messages import (
    AnyMessage,
    Best,
    Complains,
    Differs,
    Failed,
    Fresh,
    Progress,
    Shrunk,
    receive,
)
from vmm.fuzz.shrinking import Task, related, run_shrinker
from vmm.fuzz.worker import Assignment, run_worker
from vmm.hostinfo import HostInfo
from vmm.memslots.features import Features
from vmm.memslots.operations import Scenario

_TICK_S = 0.1
_SILENCE_S = 30.0
"""So long may a worker say nothing: the longest scenarios take a second or two."""

_MAX_RESTARTS = 8
_SHRINK_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. ``first`` is the index of the first scenario; None limits nothing."""

    seed: int
    out: Path
    seconds: float | None = None
    operations: int | None = None
    jobs: int = 1
    shard: tuple[int, int] = (1, 1)
    corpus: Path | None = None
    first: int = 0
    max_findings: int = 20
    shrink_s: float = 60.0


@dataclass(slots=True)
class Tally:
    """What was done so far. ``reached`` counts items of ``Reach``."""

    scenarios: int = 0
    operations: int = 0
    inconclusive: int = 0
    kept: int = 0
    reached: Counter[str] = field(default_factory=Counter)
    findings: list[Path] = field(default_factory=list)
    rates: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failure: str = ""
    seconds: float = 0.0
    shrinking: str = ""

    def note(self, text: str) -> None:
        """Remember a remark for the summary, once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass(slots=True)
class _Post:
    """A worker's place: it survives the process."""

    number: int
    cpu: int
    child: Child
    heard: float


class Fuzzer:
    """One run of ``vmm fuzz``. ``show`` draws the tally as it is; it must not start threads."""

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
        self._host = host
        self._bases = bases
        self._show = show
        self._posts: list[_Post] = []
        self._kinds: set[str] = set()
        self._tasks: deque[tuple[Task, Finding]] = deque()
        self._shrinker: Child | None = None
        self._best: Finding | None = None
        self._restarts = 0
        self._started = time.monotonic()

    def run(self) -> Tally:
        """Run until the budget is spent, something stops it, or Ctrl-C."""
        self._plan.out.mkdir(parents=True, exist_ok=True)
        cpus = sorted(os.sched_getaffinity(0))
        try:
            for number in range(self._plan.jobs):
                self._posts.append(self._post(number, cpus[number % len(cpus)], self._plan.first))
            while not self._spent():
                self._turn()
            self._end_workers()
            deadline = time.monotonic() + self._plan.shrink_s + _SHRINK_GRACE_S
            while (self._shrinker or self._tasks) and time.monotonic() < deadline:
                self._turn()
        except KeyboardInterrupt:
            self.tally.note("interrupted")
        except OSError as error:
            self.tally.note(f"ended early: {error.filename or self._plan.out}: {error.strerror}")
        finally:
            self._end()
        return self.tally

    def _post(self, number: int, cpu: int, first: int) -> _Post:
        plan = self._plan
        shard, shards = plan.shard
        assignment = Assignment(
            seed=plan.seed,
            shard=plan.shard,
            first=shard - 1 + shards * (first + number),
            step=shards * plan.jobs,
            features=self._features,
            bases=self._bases,
            keeps=plan.corpus is not None,
            journal=journal_path(plan.out, number),
            cpu=cpu,
        )
        child = Child.start(partial(run_worker, assignment))
        return _Post(number, cpu, child, time.monotonic())

    def _spent(self) -> bool:
        plan, tally = self._plan, self.tally
        if tally.failure or (not self._posts):
            return True
        if plan.seconds is not None and time.monotonic() - self._started >= plan.seconds:
            return True
        if plan.operations is not None and tally.operations >= plan.operations:
            return True
        pending = len(self._tasks) + (self._shrinker is not None)
        return len(tally.findings) + pending >= plan.max_findings

    def _turn(self) -> None:
        """Hear what there is to hear, look after those who are silent, and show the tally."""
        if self._shrinker is None and self._tasks:
            self._begin_shrinking()
        listening = [post.child.connection for post in self._posts]
        if self._shrinker is not None:
            listening.append(self._shrinker.connection)
        ready = wait(listening, _TICK_S)
        for post in tuple(self._posts):
            if post.child.connection in ready:
                self._hear(post)
            elif time.monotonic() - post.heard > _SILENCE_S:
                self._replace(post, f"hung: nothing heard for {_SILENCE_S:g} s")
        if self._shrinker is not None and self._shrinker.connection in ready:
            self._hear_shrinker(self._shrinker)
        self.tally.seconds = time.monotonic() - self._started
        self._show(self.tally)

    def _hear(self, post: _Post) -> None:
        try:
            message = receive(post.child.connection)
        except EOFError:
            self._replace(post, "")
            return
        post.heard = time.monotonic()
        self._take(message)

    def _take(self, message: AnyMessage) -> None:
        tally, plan = self.tally, self._plan
        match message:
            case Progress(scenarios, operations, inconclusive, reached):
                tally.scenarios += scenarios
                tally.operations += operations
                tally.inconclusive += inconclusive
                tally.reached.update(reached)
            case Fresh(scenario):
                if plan.corpus is not None and corpus.keep(plan.corpus, scenario):
                    tally.kept += 1
            case Differs(scenario, kind):
                self._found(scenario, kind)
            case Complains(scenario, headline, lines):
                if headline not in self._kinds:
                    self._kinds.add(headline)
                    self._write(self._finding(scenario, f"complaint {headline}", lines))
            case Failed(reason, is_disk):
                if is_disk:
                    tally.note(f"ended early: {reason}")
                    self._plan_ends()
                else:
                    tally.failure = reason
            case Best() | Shrunk():
                raise AssertionError("workers do not shrink")

    def _plan_ends(self) -> None:
        """End all workers: the loop ends with the last of them."""
        self._end_workers()

    def _found(self, scenario: Scenario, kind: str) -> None:
        if related(kind) in self._kinds:
            return
        self._kinds.add(related(kind))
        cpu = self._posts[0].cpu if self._posts else min(os.sched_getaffinity(0))
        task = Task(scenario, kind, self._features, self._plan.shrink_s, cpu)
        self._tasks.append((task, self._finding(scenario, kind)))

    def _finding(self, scenario: Scenario, kind: str, log: tuple[str, ...] = ()) -> Finding:
        return Finding(
            scenario,
            kind,
            self._plan.seed,
            found_with=len(scenario.operations),
            seconds=time.monotonic() - self._started,
            log=log,
        )

    def _begin_shrinking(self) -> None:
        task, self._best = self._tasks.popleft()
        self._shrinker = Child.start(partial(run_shrinker, task))

    def _hear_shrinker(self, shrinker: Child) -> None:
        best = self._best
        assert best is not None
        try:
            message = receive(shrinker.connection)
        except EOFError:
            how = shrinker.end()
            self._shrinker = self._best = None
            self.tally.shrinking = ""
            if best.runs == 0 and how:
                self.tally.note(f"shrinking {best.kind!r} {how}: what is left may be long")
            self._write(best)
            return
        match message:
            case Best(scenario, tries):
                self._best = _better(best, scenario=scenario, tries=tries)
                self.tally.shrinking = f"{best.kind}: {len(scenario.operations)} operations"
            case Shrunk(scenario, kind, tries, differed, runs):
                self._best = _better(best, scenario, kind, tries, differed, runs)
            case Failed(reason):
                self.tally.failure = reason
            case _:
                raise AssertionError("a shrinker only shrinks")

    def _write(self, finding: Finding) -> None:
        path = write(self._plan.out, finding, self._features, self._host)
        if path is not None:
            self.tally.findings.append(path)
            self.tally.rates[path.name] = f"{finding.differed} of {finding.runs}"

    def _replace(self, post: _Post, how: str) -> None:
        """Put another process in the place of one that is gone or hangs."""
        self._posts.remove(post)
        how = post.child.end() or how
        if self.tally.failure:
            return
        left = read_journal(journal_path(self._plan.out, post.number)) if how else None
        if left is None:
            return
        scenario = left.under_way[0] if left.under_way else left.intent.scenarios[-1]
        kind = how.partition(":")[0]
        self.tally.note(f"{scenario.name} {how}")
        self._write(self._finding(scenario, kind, (how,)))
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            self.tally.note(f"ended early: {self._restarts} workers hung or died")
            return
        jobs, shards = self._plan.jobs, self._plan.shard[1]
        behind = left.intent.next_index // shards - post.number + jobs * len(left.intent.scenarios)
        self._posts.append(self._post(post.number, post.cpu, behind))

    def _end_workers(self) -> None:
        for post in self._posts:
            post.child.end()
            journal_path(self._plan.out, post.number).unlink(missing_ok=True)
        self._posts.clear()

    def _end(self) -> None:
        """Leave no process and no journal, and keep what was not shrunk to its end."""
        self._end_workers()
        waiting = [finding for _, finding in self._tasks]
        if self._shrinker is not None:
            self._shrinker.end()
            waiting.insert(0, self._best) if self._best else None
        for finding in waiting:
            try:
                self._write(finding)
            except OSError as error:
                self.tally.note(f"a finding is lost: {error.filename}: {error.strerror}")
        if self._plan.out.exists() and not any(self._plan.out.iterdir()):
            self._plan.out.rmdir()


def _better(
    old: Finding,
    scenario: Scenario,
    kind: str = "",
    tries: int = 0,
    differed: int = 0,
    runs: int = 0,
) -> Finding:
    return Finding(
        scenario, kind or old.kind, old.seed, old.found_with, old.seconds, tries, differed, runs,
        old.log,
    )  # fmt: skip
