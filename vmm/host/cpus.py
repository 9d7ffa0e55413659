"""The CPUs that this process was started on, before it pins itself to some of them."""

import os

FOUND = frozenset(os.sched_getaffinity(0))
"""The affinity at start, which may be a part of all CPUs."""
