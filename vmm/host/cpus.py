"""The CPUs that this process was started on, before it pins itself to some of them."""

import os
from collections.abc import Collection
from contextlib import suppress

FOUND = frozenset(os.sched_getaffinity(0))
"""The affinity at start, which may be a part of all CPUs."""


def stay_on(cpus: Collection[int]) -> None:
    """Pin this thread to some CPUs, where the host allows it.

    It need not: a seccomp filter may deny the call, and a CPU may have left the cpuset, or the
    machine. What runs elsewhere is slower, and as right.
    """
    with suppress(OSError):
        os.sched_setaffinity(0, cpus)
