"""Alternates rounds through the library and in C, on one CPU.

The rounds of a setup are spread over the run, so that their spread shows how the host itself
changes. Beside each goes a piece of work that needs no kernel: how fast the CPU is at the moment.
"""

import errno
import hashlib
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from vmm.bench import library, native
from vmm.bench.library import Round
from vmm.bench.setup import Setup
from vmm.kvm.system import Kvm

ROUND_NS = 8_000_000
"""Long enough for the clock, and short enough that both ways see the same state of the host."""

LONGEST_ROUND_NS = 4 * ROUND_NS
"""How long a round may last with what it does not count: guests that write before a log is read."""

PASSES = 2
"""How many passes a run makes over all setups; each setup's rounds are spread over them."""

_FEWEST, _MOST = 16, 20_000
_HASHED = bytes(1 << 18)


class Cost(msgspec.Struct, frozen=True):
    """Microseconds for one piece of work: the median of the rounds, and their middle half."""

    median: float
    low: float
    high: float


class Point(msgspec.Struct, frozen=True):
    """The cost of one setup. ``ratio`` is library to C, the median over pairs of rounds.

    ``yardstick`` is what the same piece of work without any call of the kernel took beside it.
    """

    setup: Setup
    rounds: int
    library: Cost
    c: Cost | None = None
    ratio: float | None = None
    yardstick: Cost | None = None


class Sample(NamedTuple):
    """What a round took: microseconds for one piece of work, and for the yardstick."""

    library: float
    c: float | None
    yardstick: float


@contextmanager
def pinned() -> Iterator[int]:
    """Pin this process to the lowest CPU that it may stay on, in the block. Raises `OSError`.

    One may leave the cpuset, or the machine, meanwhile.
    """
    before = os.sched_getaffinity(0)
    cpu = next(filter(_is_stayed_on, sorted(before)), None)
    if cpu is None:
        raise PermissionError(errno.EPERM, "sched_setaffinity: there is no CPU to stay on")
    try:
        yield cpu
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)


def _is_stayed_on(cpu: int) -> bool:
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        return False
    return True


def shares(rounds: int) -> list[int]:
    """Return how many of the rounds each pass has."""
    return [rounds // PASSES + (number < rounds % PASSES) for number in range(PASSES)]


def samples(kvm: Kvm, setup: Setup, rounds: int, program: Path | None) -> list[Sample]:
    """Measure one setup. Raises KvmError, and RuntimeError if only the C program is refused."""
    with ExitStack() as stack:
        ours = stack.enter_context(library.ready(kvm, setup))
        ways: list[Round] = [ours]
        if program is not None:
            ways.append(stack.enter_context(native.ready(program, setup)))
        times = repetitions(ways)
        return [_sample(ways, times) for _ in range(rounds)]


def _sample(ways: Sequence[Round], times: int) -> Sample:
    yardstick = _yardstick_us()
    took = [way(times) / times / 1000 for way in ways]
    return Sample(took[0], took[1] if len(took) > 1 else None, yardstick)


def _yardstick_us() -> float:
    began = time.perf_counter_ns()
    hashlib.blake2b(_HASHED)
    return (time.perf_counter_ns() - began) / 1000


def point_of(setup: Setup, taken: Sequence[Sample]) -> Point:
    """Return the costs in the samples of a setup."""
    both = [(each.library, each.c) for each in taken if each.c is not None]
    return Point(
        setup,
        len(taken),
        _cost([each.library for each in taken]),
        _cost([theirs for _, theirs in both]) if both else None,
        statistics.median(ours / theirs for ours, theirs in both) if both else None,
        _cost([each.yardstick for each in taken]),
    )


def repetitions(ways: Sequence[Round]) -> int:
    """Return how often a round repeats the work, an even number; runs two rounds to find it."""
    return min(map(_repetitions, ways))


def _repetitions(way: Round) -> int:
    way(_FEWEST)  # The first finds all caches cold, and waits for the program in C to be ready.
    began = time.perf_counter_ns()
    counted = way(_FEWEST)
    lasted = time.perf_counter_ns() - began
    times = _FEWEST * min(ROUND_NS / max(counted, 1), LONGEST_ROUND_NS / max(lasted, 1))
    return int(min(max(times, _FEWEST), _MOST)) // 2 * 2


def _cost(samples: Sequence[float]) -> Cost:
    if len(samples) == 1:
        return Cost(samples[0], samples[0], samples[0])
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Cost(middle, low, high)
