"""The CPUs that this process was given, before it moved itself to some of them."""

import os

FOUND = frozenset(os.sched_getaffinity(0))
"""What stood when the program began: whoever started it may have kept it from the others."""
