"""What becomes of what was found: one after the other is shrunk, in a process, and written."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

from vmm.fuzz.findings import Finding, write
from vmm.fuzz.messages import Best, Failed, Shrunk, receive
from vmm.fuzz.shrinking import Task, related
from vmm.fuzz.stages import improved, stages
from vmm.fuzz.tally import Plan, Tally
from vmm.host.child import Child
from vmm.host.hostinfo import HostInfo
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario

_WRITING_S = 10.0
"""So long may it take to run a finding once more, for its history."""

_MOST_EXAMPLES = 8
_HURRIED_S = 2.0
_GRACE_S = 30.0
"""So long may a shrinker take beyond its limit: for what it is trying, and to find the rate."""


class Workshop:
    """Shrinks findings and writes them. ``turn`` goes on when ``connection`` has something."""

    def __init__(self, plan: Plan, features: Features, host: HostInfo, tally: Tally) -> None:
        self._plan = plan
        self._features = features
        self._host = host
        self._tally = tally
        self._waiting: deque[Finding] = deque()
        self._best: Finding | None = None
        self._examples: defaultdict[str, list[Scenario]] = defaultdict(list)
        self._stages: Iterator[Child] = iter(())
        self._child: Child | None = None
        self._limit = 0.0

    @property
    def pending(self) -> int:
        """How many findings are not written yet."""
        return len(self._waiting) + (self._best is not None)

    @property
    def connection(self) -> Connection | None:
        """What the process that shrinks says; None while there is none."""
        return None if self._child is None else self._child.connection

    def add(self, finding: Finding) -> None:
        """Take a finding, to be shrunk when its turn comes."""
        self._waiting.append(finding)

    def keep_example(self, scenario: Scenario, kind: str) -> None:
        """Keep another scenario of a kind that was found before, should that one not do."""
        examples = self._examples[related(kind)]
        if len(examples) < _MOST_EXAMPLES:
            examples.append(scenario)

    def begin(self, cpu: int, left_s: float) -> None:
        """Begin with the next finding, if none is being shrunk.

        ``left_s`` is how much time there is for all that wait.
        """
        if self._child is not None or not self._waiting:
            return
        limit = min(self._plan.shrink_s, left_s / len(self._waiting) - _HURRIED_S)
        self._best = replace(self._waiting.popleft(), unfinished=True)
        if limit <= 0:
            self._finish()
            return
        self._limit = time.monotonic() + limit + _GRACE_S
        task = Task(self._best.scenario, self._best.kind, self._features, limit, cpu)
        others = self._examples[related(task.kind)]
        self._stages = stages(task, self._come_to, others, self._left_s)
        self._child = next(self._stages)

    def _come_to(self) -> Finding:
        assert self._best is not None
        return self._best

    def _left_s(self) -> float:
        return self._limit - _GRACE_S - time.monotonic()

    def hear(self) -> None:
        """Take a message of the process that shrinks."""
        assert self._child is not None
        assert self._best is not None
        try:
            message = receive(self._child.connection)
        except EOFError:
            self._end_child()
            self._child = next(self._stages, None)
            if self._child is None:
                self._finish()
            return
        match message:
            case Best() | Shrunk():
                self._best = improved(self._best, message)
                count = len(message.scenario.operations)
                self._tally.shrinking = f"{self._best.kind}: {count} operations"
            case Failed(reason):
                self._tally.failure = reason
            case _:
                raise AssertionError("a shrinker only shrinks")

    def look_after(self) -> None:
        """Put an end to a process that shrinks for too long: it hangs."""
        if self._child is not None and time.monotonic() > self._limit:
            self._end_child()
            self._finish()

    def write(self, finding: Finding, time_limit_s: float = _WRITING_S) -> None:
        """Write a finding, unless this or an earlier run has. Raises OSError."""
        path, is_new = write(self._plan.out, finding, self._features, self._host, time_limit_s)
        tally = self._tally
        if path in (*tally.findings, *tally.again):
            return
        (tally.findings if is_new else tally.again).append(path)
        tally.remarks[path.name] = finding.remark

    def close(self) -> None:
        """Leave no process, and write what was not shrunk to its end as it is."""
        self._end_child()
        if self._best is not None:
            self._waiting.appendleft(self._best)
            self._best = None
        while self._waiting:
            finding = replace(self._waiting[0], unfinished=True)
            try:
                self.write(finding, _HURRIED_S)
            except OSError as error:
                self._tally.lost += 1
                self._tally.note(f"a finding is lost: {error.filename}: {error.strerror}")
            self._waiting.popleft()

    def _finish(self) -> None:
        assert self._best is not None
        self.write(self._best)
        self._best = None

    def _end_child(self) -> None:
        if self._child is None:
            return
        how = self._child.end()
        self._child = None
        self._tally.shrinking = ""
        if how and self._best is not None:
            self._tally.note(f"shrinking {self._best.kind!r} {how}")
