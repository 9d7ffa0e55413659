"""What a run of ``vmm fuzz`` is to do, and what it did so far."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_OVERTIME_SHARE = 0.25
_LEAST_OVERTIME_S = 20.0
_USUAL_OVERTIME_S = 90.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do; None limits nothing.

    ``scenarios`` are the first ones of the shard, whatever the number of jobs. ``operations`` are
    shared among the jobs, and each ends with the scenario that is under way then.

    ``first`` counts the scenarios of the shard that an earlier run has done.
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
        """How long what was found may be minimised and written when the budget is spent."""
        if self.seconds is None:
            return _USUAL_OVERTIME_S
        return max(self.seconds * _OVERTIME_SHARE, _LEAST_OVERTIME_S)

    @property
    def is_bounded(self) -> bool:
        """Whether the run has an end of its own."""
        return self.seconds is not None or self.counts

    @property
    def counts(self) -> bool:
        """Whether each job has a share of the work, which is the same in each run."""
        return self.operations is not None or self.scenarios is not None

    @property
    def step(self) -> int:
        """How far the scenarios of one worker lie apart."""
        return self.shard[1] * self.jobs

    def index(self, worker: int) -> int:
        """Return where a worker begins, so that no two workers of any shards share a scenario."""
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
        """Return the index, among the scenarios of all shards, of one of this shard."""
        shard, shards = self.shard
        return shard - 1 + shards * number


@dataclass(slots=True)
class Tally:
    """What was done so far. ``covered`` counts items of ``Novelty``.

    ``findings`` are new folders, ``again`` those of earlier runs that this one has found, too.
    ``lost`` counts those that could not be written. Each of ``findings`` is a fault: ``also`` has
    the other findings of it, by the name of its folder, and ``remarks`` say how reliably they show.

    ``differs`` says whether one of them is a difference, or a complaint of the kernel; what hung
    or died is none. ``disturbed`` says whether somebody killed or stopped what was at work.
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
        """Say why the budget is not spent."""
        self.ended_early = True
        self.note(f"ended early: {why}")

    def note(self, text: str) -> None:
        """Remember a remark for the summary, once."""
        if text not in self.notes:
            self.notes.append(text)
