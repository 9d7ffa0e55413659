"""Alternates rounds through the library and in C, on one CPU."""

import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from vmm.bench import library, native
from vmm.bench.library import Round
from vmm.bench.setup import Setup
from vmm.kvm.system import Kvm

ROUND_NS = 20_000_000
"""Long enough for the clock, and short enough that both ways see the same state of the host."""

_FEWEST, _MOST = 16, 20_000


class Cost(msgspec.Struct, frozen=True):
    """Microseconds for one piece of work: the median of the rounds, and their middle half."""

    median: float
    low: float
    high: float


class Point(msgspec.Struct, frozen=True):
    """The cost of one setup. ``ratio`` is library to C, the median over pairs of rounds."""

    setup: Setup
    rounds: int
    library: Cost
    c: Cost | None = None
    ratio: float | None = None


@contextmanager
def pinned() -> Iterator[int]:
    """Pin this process to its lowest CPU in the block."""
    before = os.sched_getaffinity(0)
    cpu = min(before)
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, before)


def measure(kvm: Kvm, setup: Setup, rounds: int, program: Path | None) -> Point:
    """Measure one setup. Raises KvmError, and RuntimeError if only the C program is refused."""
    with ExitStack() as stack:
        ours = stack.enter_context(library.ready(kvm, setup))
        ways: list[Round] = [ours]
        if program is not None:
            ways.append(stack.enter_context(native.ready(program, setup)))
        times = _times(ways)
        taken = [[way(times) / times / 1000 for way in ways] for _ in range(rounds)]
    columns = list(zip(*taken, strict=True))
    if program is None:
        return Point(setup, rounds, _cost(columns[0]))
    ratio = statistics.median(ours / theirs for ours, theirs in taken)
    return Point(setup, rounds, _cost(columns[0]), _cost(columns[1]), ratio)


def _times(ways: Sequence[Round]) -> int:
    """Return how often a round repeats the work, an even number; runs one round to find it."""
    cost_ns = max(way(_FEWEST) for way in ways) / _FEWEST
    return int(min(max(ROUND_NS / max(cost_ns, 1), _FEWEST), _MOST)) // 2 * 2


def _cost(samples: Sequence[float]) -> Cost:
    if len(samples) == 1:
        return Cost(samples[0], samples[0], samples[0])
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Cost(middle, low, high)
