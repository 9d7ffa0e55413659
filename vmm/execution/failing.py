"""Makes allocations of the kernel fail (Documentation/fault-injection).

/proc/thread-self/fail-nth counts the allocations of one thread, so nothing else is affected. The
administrator decides whether ordinary allocations can fail.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAIL_NTH = Path("/proc/thread-self/fail-nth")
IGNORE_WAITING = Path("/sys/kernel/debug/failslab/ignore-gfp-wait")


def can_fail_allocations() -> bool:
    """Whether the allocations of a system call can be made to fail."""
    try:
        FAIL_NTH.write_bytes(b"0")
        return IGNORE_WAITING.read_bytes().strip() == b"N"
    except OSError:
        return False


@contextmanager
def failing_allocation(nth: int) -> Iterator[None]:
    """Make the nth allocation of this thread's system calls in the block fail, counted from 1."""
    with FAIL_NTH.open("r+b", buffering=0) as file:
        file.write(str(nth).encode())
        try:
            yield
        finally:
            file.write(b"0")
