"""The result of a benchmark as a file, what became slower since an older one, and growth."""

import math
from collections.abc import Sequence

import msgspec

from vmm.bench.measure import Point
from vmm.bench.setup import WORDS, Setup, Work
from vmm.scenario.kinds import COSTS, other_than
from vmm.scenario.undecodable import UNDECODABLE

FORMAT = 1
SURE = 1.05
"""Medians must differ by this factor, and their middle halves must not overlap."""


class Bench(msgspec.Struct, frozen=True):
    """All points of a run, and where: the kernel's version, its backend, the CPU.

    ``early`` says why there are none, if the run ended early.
    """

    kernel: str
    backend: str
    processor: str
    cpu: int
    points: tuple[Point, ...]
    tool: str = ""
    time: str = ""
    format: int = FORMAT
    early: str = ""


class BenchFileError(ValueError):
    """A file that is not a result of ``vmm bench --json``; the text says why."""


class CostChange(msgspec.Struct, frozen=True):
    """How the cost of one setup changed: ``factor`` is above 1 if it became slower.

    ``cpu_factor`` is how the CPU itself changed: what the yardstick took.
    """

    setup: Setup
    before_us: float
    after_us: float
    is_beyond_noise: bool
    cpu_factor: float = 1.0

    @property
    def factor(self) -> float:
        """The new median as a multiple of the old."""
        return self.after_us / self.before_us


def text_of(bench: Bench) -> str:
    """Return the result as JSON."""
    return msgspec.json.format(msgspec.json.encode(bench), indent=2).decode() + "\n"


def bench_of(data: bytes) -> Bench:
    """Return the result in a file. Raises BenchFileError."""
    other = other_than(COSTS, data)
    if other:
        raise BenchFileError(other)
    try:
        head = msgspec.json.decode(data)
        found = head.get("format") if isinstance(head, dict) else None
        if isinstance(found, int) and not isinstance(found, bool) and found > FORMAT:
            raise BenchFileError(f"format {found} is newer than {FORMAT}: update this program")
        bench = msgspec.json.decode(data, type=Bench)
    except UNDECODABLE as error:
        raise BenchFileError(f"no result of `vmm bench --json`: {error}") from None
    if bench.format != FORMAT:
        raise BenchFileError(f"format {bench.format} is not {FORMAT}")
    if bench.early:
        raise BenchFileError(f"nothing was measured: {bench.early}")
    for point in bench.points:
        if not all(math.isfinite(us) and us > 0 for us in _numbers(point)):
            raise BenchFileError(f"{point.setup.work}: a cost is a number of microseconds above 0")
    return bench


def _numbers(point: Point) -> list[float]:
    costs = [cost for cost in (point.library, point.c, point.yardstick) if cost is not None]
    return [us for cost in costs for us in (cost.low, cost.median, cost.high)]


def changes(before: Bench, after: Bench) -> list[CostChange]:
    """Return what both have measured; the greatest factor first.

    A change is beyond the noise if the middle halves of the rounds do not overlap and the medians
    differ by at least 5 % more than the CPU itself can explain.
    """
    old = {point.setup: point for point in before.points}
    both = [(old[point.setup], point) for point in after.points if point.setup in old]
    return sorted((_change(*each) for each in both), key=lambda change: -change.factor)


def _change(before: Point, after: Point) -> CostChange:
    then, now = before.library, after.library
    cpu = 1.0
    if before.yardstick is not None and after.yardstick is not None:
        cpu = after.yardstick.median / before.yardstick.median
    factor = now.median / then.median
    apart = now.low > then.high or now.high < then.low
    unexplained = factor >= max(cpu, 1) * SURE or factor <= min(cpu, 1) / SURE
    return CostChange(after.setup, then.median, now.median, apart and unexplained, cpu)


def growth(points: Sequence[Point]) -> list[str]:
    """Say in words how each cost grows with the number of slots, if several were measured."""
    lines = []
    works: dict[Work, list[Point]] = {}
    for point in points:
        works.setdefault(point.setup.work, []).append(point)
    for work, of_work in works.items():
        alike = [p for p in of_work if _but_for_slots(p.setup) == _but_for_slots(of_work[0].setup)]
        alike.sort(key=lambda point: point.setup.slots)
        if len({point.setup.slots for point in alike}) > 1:
            lines.append(f"{work}: {_growth(alike)} ({WORDS[work]})")
    return lines


def _but_for_slots(setup: Setup) -> Setup:
    return msgspec.structs.replace(setup, slots=0)


def _growth(points: Sequence[Point]) -> str:
    """Compare the ends by the exponent of a power law, fitted to the medians by least squares."""
    first, last = points[0], points[-1]
    span = f"from {first.setup.slots} to {last.setup.slots} slots"
    factor = last.library.median / first.library.median
    if factor < SURE:
        return f"does not grow {span}"
    if last.library.low <= first.library.high:
        return f"does not grow beyond the noise {span}"
    x = [math.log(max(point.setup.slots, 1)) for point in points]
    y = [math.log(point.library.median) for point in points]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((each - middle_x) ** 2 for each in x)
    slope = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread
    if slope < 0.05:
        kind = "hardly grows"
    elif slope < 0.3:
        kind = "grows much more slowly than the number of slots, like its logarithm"
    elif slope < 0.75:
        kind = "grows more slowly than the number of slots"
    else:
        kind = "grows in proportion to the number of slots"
    return f"{kind}: {factor:.2f} times {span}"
