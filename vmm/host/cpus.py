"""The CPUs that this process was started on, before it pins itself to some of them."""

import os
from collections.abc import Collection
from contextlib import suppress


def allowed() -> frozenset[int]:
    """Return the CPUs that this thread may run on: all, where the host denies the question."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except OSError:
        return frozenset(range(os.cpu_count() or 1))


FOUND = allowed()
"""The affinity at start, which may be a part of all CPUs."""


def stay_on(cpus: Collection[int]) -> None:
    """Pin this thread to some CPUs, where the host allows it.

    It need not: a seccomp filter may deny the call, and a CPU may have left the cpuset, or the
    machine. What runs elsewhere is slower, and as right.
    """
    with suppress(OSError):
        os.sched_setaffinity(0, cpus)
