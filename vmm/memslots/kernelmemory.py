"""Does the kernel use up memory for something that is done again and again?

/proc/meminfo counts for the whole machine, so one difference says nothing: others allocate, too,
and much is freed late (RCU). But what leaks grows with every round, and noise does not. So the
least growth of several rounds is what each round has certainly cost. Measured with nothing wrong,
on a machine under load, it is zero or below; a suspicion is measured again all the same. A leak
is missed where others give back more than it takes, half a MiB a round on that machine: rounds of
hundreds of VMs, 40 KiB each, stand out, and smaller leaks do so on an idle machine.
"""

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

COUNTED = ("SUnreclaim", "VmallocUsed", "Percpu", "KernelStack", "SecPageTables")
"""Fields of /proc/meminfo: what slots, vCPUs, VMs and their page tables are made of."""

ROUNDS = 4
ATTEMPTS = 3
TOLERANCE_BYTES = 64
"""Of growth for each turn: less than the smallest thing that could be forgotten, a memslot."""

_MEMINFO = Path("/proc/meminfo")
_REFRESH = Path("/proc/sys/vm/stat_refresh")

Counters = dict[str, int]


def growth(
    turn: Callable[[], None], times: int, read: Callable[[], Counters] | None = None
) -> tuple[str, ...]:
    """Do something ``times`` times in rounds; return what grew with each of them, and how much.

    One more round goes before, for what the kernel allocates once. ``read`` is for tests.
    """
    counters = read or read_counters
    share = -(-times // ROUNDS)
    grown: Counters = {}
    for attempt in range(ATTEMPTS):
        rounds = ROUNDS if attempt else ROUNDS + 1
        grown = _certain(_readings(turn, share, rounds, counters)[-ROUNDS - 1 :])
        grown = {name: size for name, size in grown.items() if size > TOLERANCE_BYTES * share}
        if not grown:
            break
    return tuple(
        f"{name} of /proc/meminfo grows by {size // share} bytes each time"
        for name, size in grown.items()
    )


def _readings(
    turn: Callable[[], None], share: int, rounds: int, counters: Callable[[], Counters]
) -> list[Counters]:
    """Return the counters before, between and after the rounds."""
    readings = [counters()]
    for _ in range(rounds):
        for _ in range(share):
            turn()
        readings.append(counters())
    return readings


def _certain(readings: list[Counters]) -> Counters:
    """Return by how much each counter has grown in every round, at the least."""
    pairs = list(pairwise(readings))
    return {
        name: min(after[name] - before[name] for before, after in pairs) for name in readings[0]
    }


def read_counters() -> Counters:
    """Return the counted fields in bytes, as far as this kernel has them.

    Each CPU keeps up to half a MiB to itself before it is counted; an administrator's look at
    stat_refresh has it counted at once.
    """
    with suppress(OSError):
        _REFRESH.read_bytes()
    fields = (line.split() for line in _MEMINFO.read_text().splitlines())
    sizes = {name.rstrip(":"): int(size) << 10 for name, size, *_ in fields}
    return {name: sizes[name] for name in COUNTED if name in sizes}
