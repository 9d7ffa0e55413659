"""What a run of ``vmm fuzz`` is to do, and what it has done so far."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_OVERTIME_SHARE = 0.25
_LEAST_OVERTIME_S = 20.0
_USUAL_OVERTIME_S = 90.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do; None is no limit.

    ``scenarios`` are the first ones of the shard, whatever the number of jobs. ``operations`` are
    shared among the jobs; each finishes the scenario that is under way when its share is done.

    ``first`` is how many scenarios of the shard an earlier run has done.
    """

    seed: int
    out: Path
    seconds: float | None = None
    operations: int | None = None
    scenarios: int | None = None
    jobs: int = 1
    shard: tuple[int, int] = (1, 1)
    corpus: Path | None = None
    first: int = 0
    max_findings: int = 20
    minimise_s: float = 60.0

    @property
    def overtime_s(self) -> float:
        """How long findings may be minimised and written after the budget is spent."""
        if self.seconds is None:
            return _USUAL_OVERTIME_S
        return max(self.seconds * _OVERTIME_SHARE, _LEAST_OVERTIME_S)

    @property
    def is_bounded(self) -> bool:
        """Whether the run ends by itself."""
        return self.seconds is not None or self.counts

    @property
    def counts(self) -> bool:
        """Whether each job has a fixed share of the work, the same in each run."""
        return self.operations is not None or self.scenarios is not None

    @property
    def step(self) -> int:
        """The distance between the scenarios of one worker."""
        return self.shard[1] * self.jobs

    def index(self, worker: int) -> int:
        """Return a worker's first scenario; no two workers of any shards share a scenario."""
        return self._global(self.first + worker)

    @property
    def end(self) -> int | None:
        """The index before which all workers end."""
        return None if self.scenarios is None else self._global(self.first + self.scenarios)

    @property
    def share(self) -> int | None:
        """How many operations each job runs."""
        return None if self.operations is None else -(-self.operations // self.jobs)

    def _global(self, number: int) -> int:
        """Return the index among the scenarios of all shards, of one of this shard."""
        shard, shards = self.shard
        return shard - 1 + shards * number


@dataclass(slots=True)
class Tally:
    """What was done so far. ``covered`` counts items of ``Novelty``.

    ``findings`` are new folders, ``again`` those of earlier runs that this one found, too. ``lost``
    counts findings that could not be written. Each of ``findings`` is one fault: ``also`` has the
    other findings of it, by the name of its folder, and ``remarks`` say how reliably they show.

    ``differs`` says whether one of them is a difference or a complaint of the kernel, rather than a
    run that hung or died. ``disturbed`` says whether somebody killed or stopped a worker.
    """

    scenarios: int = 0
    operations: int = 0
    inconclusive: int = 0
    known: int = 0
    kept: int = 0
    covered: Counter[str] = field(default_factory=Counter)
    findings: list[Path] = field(default_factory=list)
    again: list[Path] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    also: dict[str, list[Path]] = field(default_factory=dict)
    lost: int = 0
    differs: bool = False
    disturbed: bool = False
    ended_early: bool = False
    failure: str = ""
    seconds: float = 0.0
    overtime: float = 0.0
    minimising: str = ""

    def end_early(self, why: str) -> None:
        """Note why the budget is not spent."""
        self.ended_early = True
        self.note(f"ended early: {why}")

    def note(self, text: str) -> None:
        """Add a remark to the summary, once."""
        if text not in self.notes:
            self.notes.append(text)
