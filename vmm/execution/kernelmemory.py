"""Finds out whether the kernel uses up memory, or addresses, when something is repeated.

/proc/meminfo counts for the whole machine, so one difference proves nothing: others allocate, too,
and much is freed late (RCU). So the work is done in rounds, each followed by an equally long wait.
What others allocate also grows during the wait, and what is freed late is gone after it; a leak
does neither. The least growth over any stretch of at least half the rounds, by either measure, is
what the work has certainly cost. A suspicion is nevertheless measured again. A leak is missed if
others free more than it takes: smaller leaks stand out on an idle machine only. But a VM that is
lost keeps its vCPUs, and what these take is counted by itself, in /proc/slabinfo, where root may
read it: only other users of KVM can hide that. An eventfd that is held takes next to nothing, but
its number, and new ones have the least that is free.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import combinations
from pathlib import Path

COUNTED = ("SUnreclaim", "VmallocUsed", "Percpu", "KernelStack", "SecPageTables")
"""Fields of /proc/meminfo that slots, vCPUs, VMs and their page tables are counted in."""

PAGES = "pages"
"""Pages that /proc/meminfo counts as used, and as nothing in particular."""

_TOLD = (
    *("MemFree", "Buffers", "Cached", "SwapCached", "AnonPages", "Slab", "KernelStack"),
    *("PageTables", "SecPageTables", "VmallocUsed", "Percpu", "Hugetlb"),
)
TOLERANCE_OF_PAGES_BYTES = 256 << 10
"""Each CPU keeps some pages that it has freed."""

ROUNDS = 8
ATTEMPTS = 2
TOLERANCE_BYTES = 64 << 10
"""Growth in a round that is ignored: others' stacks and page tables come and go."""

VCPUS = "kvm_vcpu"
"""The name of the kernel's cache of vCPUs, of 10 to 50 KiB each."""

TOLERANCE_OF_VCPUS_BYTES = 16 << 10
"""Less than a vCPU in two rounds: nobody else takes or frees any of them in passing."""

EVENTFDS = "eventfd-id"
"""The number of a new eventfd: it grows by what is held of those before."""

TOLERANCE_OF_EVENTFDS = 4
"""Eventfds in a round that may be others' own."""

ADDRESSES = "VmSize"
"""The mapped size of this process: it grows by what an internal slot leaves there."""

ALL = (*COUNTED, PAGES, VCPUS, EVENTFDS, ADDRESSES)
"""The counters that there are."""

_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_SLABINFO = Path("/proc/slabinfo")
_DESCRIPTORS = Path("/proc/self/fdinfo")
_REFRESH = Path("/proc/sys/vm/stat_refresh")

Counters = dict[str, int]
Round = tuple[Counters, Counters]
"""Growth over work and wait together; and growth during the work minus that during the wait."""


def growth(
    turn: Callable[[], None], times: int, read: Callable[[], Counters] | None = None
) -> tuple[str, ...]:
    """Call ``turn`` ``times`` times in rounds; return what grew with each call, and how much.

    An extra round comes first, for what the kernel allocates only once. ``read`` is for tests.
    """
    counters = read or read_counters
    share = -(-times // ROUNDS)
    _round(turn, share, counters)
    grown: Counters = {}
    for _ in range(ATTEMPTS):
        grown = _certain([_round(turn, share, counters) for _ in range(ROUNDS)])
        grown = {name: size for name, size in grown.items() if size > _tolerance(name)}
        if not grown:
            break
    return tuple(
        f"{name} of {_source(name)} grows by {_part(name, size, share)} each time"
        for name, size in grown.items()
    )


def _round(turn: Callable[[], None], share: int, counters: Callable[[], Counters]) -> Round:
    """Do a share of the work, wait equally long, and return what has grown."""
    start_s = time.monotonic()
    before = counters()
    for _ in range(share):
        turn()
    between = counters()
    time.sleep(time.monotonic() - start_s)
    after = counters()
    grown = {name: after[name] - before[name] for name in before}
    of_work = {name: 2 * between[name] - before[name] - after[name] for name in before}
    return grown, of_work


def _certain(rounds: list[Round]) -> Counters:
    """Return each counter's least average growth a round, over stretches of at least half."""
    half = ROUNDS // 2
    stretches = [rounds[i:j] for i, j in combinations(range(ROUNDS + 1), 2) if j - i >= half]
    return {
        name: min(
            sum(measures[which][name] for measures in stretch) // len(stretch)
            for stretch in stretches
            for which in (0, 1)
        )
        for name in rounds[0][0]
    }


def read_counters() -> Counters:
    """Return the counted fields, and ``ADDRESSES``, in bytes, as far as this kernel has them.

    Each CPU keeps up to half a MiB uncounted; a read of stat_refresh by root makes it counted at
    once.
    """
    with suppress(OSError):
        _REFRESH.read_bytes()
    lines = [*_MEMINFO.read_text().splitlines(), *_STATUS.read_text().splitlines()]
    fields = (line.partition(":") for line in lines)
    sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in fields if rest.endswith(" kB")}
    sizes[PAGES] = sizes["MemTotal"] - sum(sizes.get(name, 0) for name in _TOLD)
    sizes |= _of_vcpus() | _of_eventfds()
    return {name: sizes[name] for name in ALL if name in sizes}


def _of_vcpus() -> Counters:
    """Return what all vCPUs of this machine take; nothing if this process may not know."""
    try:
        lines = _SLABINFO.read_text().splitlines()
    except OSError:
        return {}
    found = next((line.split() for line in lines if line.startswith(f"{VCPUS} ")), [])
    return {VCPUS: int(found[1]) * int(found[3])} if len(found) > 3 else {}


def _of_eventfds() -> Counters:
    """Return the number that a new eventfd has; nothing on kernels that do not tell it."""
    new = os.eventfd(0)
    try:
        lines = (_DESCRIPTORS / str(new)).read_text().splitlines()
    finally:
        os.close(new)
    told = [line.split()[1] for line in lines if line.startswith(f"{EVENTFDS}:")]
    return {EVENTFDS: int(told[0])} if told else {}


def _tolerance(name: str) -> int:
    others = {
        VCPUS: TOLERANCE_OF_VCPUS_BYTES,
        EVENTFDS: TOLERANCE_OF_EVENTFDS,
        PAGES: TOLERANCE_OF_PAGES_BYTES,
    }
    return others.get(name, TOLERANCE_BYTES)


def _part(name: str, size: int, share: int) -> str:
    """Return one turn's part of a round's growth. Not every turn needs to hold an eventfd."""
    return f"{size / share:.2g}" if name == EVENTFDS else f"{size // share} bytes"


def _source(name: str) -> Path:
    return {ADDRESSES: _STATUS, VCPUS: _SLABINFO, EVENTFDS: _DESCRIPTORS}.get(name, _MEMINFO)
