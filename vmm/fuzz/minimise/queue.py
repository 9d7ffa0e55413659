"""The queue of findings: each is minimised, in a process of its own, and then written."""

from collections import defaultdict, deque
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from vmm.execution.runner import HarnessError
from vmm.fuzz.endings import is_ending
from vmm.fuzz.findings import ALSO, Finding, length_of, swap, write
from vmm.fuzz.minimise.fault import Fault, fault_of
from vmm.fuzz.minimise.stages import Stages
from vmm.fuzz.tally import Plan, Tally
from vmm.host.hostinfo import HostInfo
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.verdict.identity import Identity

_WRITING_S = 10.0
"""Time limit for running a finding once more to get its history."""

_MOST_EXAMPLES = 8
_HURRIED_S = 2.0


class Queue:
    """Minimises findings and writes them. Call ``receive`` when ``connection`` is readable."""

    def __init__(self, plan: Plan, features: Features, host: HostInfo, tally: Tally) -> None:
        self._plan = plan
        self._features = features
        self._host = host
        self._tally = tally
        self._waiting: deque[Finding] = deque()
        self._examples: defaultdict[Identity, list[Scenario]] = defaultdict(list)
        self._faults: dict[Fault, Path] = {}
        self._stages: Stages | None = None

    @property
    def pending(self) -> int:
        """How many findings are not written yet."""
        return len(self._waiting) + (self._stages is not None)

    @property
    def connection(self) -> Connection | None:
        """Messages of the minimising process; None if there is none."""
        return None if self._stages is None else self._stages.connection

    def add(self, finding: Finding) -> None:
        """Add a finding, to be minimised in turn."""
        self._waiting.append(replace(finding, unfinished=True))

    def keep_example(self, scenario: Scenario, identity: Identity) -> None:
        """Keep another scenario of a known kind, in case the first one cannot be confirmed."""
        examples = self._examples[identity.cause]
        if len(examples) < _MOST_EXAMPLES:
            examples.append(scenario)

    def begin(self, cpu: int, left_s: float) -> None:
        """Begin with the next finding, unless one is being minimised.

        ``left_s`` is the time that is left for all waiting ones.
        """
        if self._stages is not None or not self._waiting:
            return
        limit = min(self._plan.minimise_s, left_s / len(self._waiting) - _HURRIED_S)
        finding = self._waiting.popleft()
        if limit <= 0:
            self.write(finding)
            return
        others = self._examples[finding.identity.cause]
        host = self._host.in_brief()
        self._stages = Stages(finding, self._features, limit, cpu, others, host)

    def receive(self) -> None:
        """Handle a message of the minimising process."""
        assert self._stages is not None
        try:
            self._stages.receive()
        except HarnessError as error:
            self._tally.failure = str(error)
        finding = self._stages.finding
        count = len(finding.scenario.operations)
        self._tally.minimising = f"{finding.identity}: {count} operations"
        self._finish_if_over()

    def check_time(self) -> None:
        """End a minimising process that takes too long, since it hangs."""
        if self._stages is not None:
            self._stages.check_time()
            self._finish_if_over()

    def write(self, finding: Finding, time_limit_s: float = _WRITING_S) -> None:
        """Write a finding, unless this or an earlier run has. Raises OSError."""
        tally = self._tally
        tally.differs |= not is_ending(finding.identity)
        fault = fault_of(finding.scenario, finding.identity)
        known = self._faults.get(fault)
        folder = self._plan.out if known is None else known / ALSO
        if known is not None and finding.name == known.name:
            return
        path, is_new = write(folder, finding, self._features, self._host, time_limit_s)
        if path in (*tally.findings, *tally.again):
            return
        tally.remarks[path.name] = finding.remark
        if known is None:
            self._faults[fault] = path
            (tally.findings if is_new else tally.again).append(path)
        elif is_new:
            self._join(fault, known, path)

    def _join(self, fault: Fault, known: Path, path: Path) -> None:
        """Put the shorter of two findings of one fault first, and keep the other inside it."""
        tally = self._tally
        first = self._plan.out / path.name
        if length_of(path) >= length_of(known) or first.exists():
            first = known
        else:
            swap(known, path, first)
            for found in (tally.findings, tally.again):
                found[:] = [first if each == known else each for each in found]
            self._faults[fault] = first
            tally.also.pop(known.name, None)
        tally.also[first.name] = sorted((first / ALSO).iterdir())

    def close(self) -> None:
        """End the process, and write what was not fully minimised as it is."""
        if self._stages is not None:
            self._waiting.appendleft(self._end_stages(self._stages))
        while self._waiting:
            try:
                self.write(self._waiting[0], _HURRIED_S)
            except OSError as error:
                self._tally.lost += 1
                self._tally.note(f"a finding is lost: {error.filename}: {error.strerror}")
            self._waiting.popleft()

    def _finish_if_over(self) -> None:
        if self._stages is not None and self._stages.connection is None:
            # Queued until it is written: if that fails, it is tried once more at the end.
            self._waiting.appendleft(self._end_stages(self._stages))
            self.write(self._waiting[0])
            self._waiting.popleft()

    def _end_stages(self, stages: Stages) -> Finding:
        """End the process, and return the finding so far."""
        stages.close()
        self._stages = None
        self._tally.minimising = ""
        for note in stages.notes:
            self._tally.note(note)
        return stages.finding
