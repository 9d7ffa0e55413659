"""Records a VMM with strace: which calls to trace, and which lines to keep.

strace can select system calls, but not ioctl requests: KVM_RUN alone would be millions of lines.
"""

import re
from collections.abc import Sequence

from vmm.replay.numbers import (
    CHECK_EXTENSION,
    CONCERNED,
    CREATE_VM,
    REGION,
    REGION2,
    SET_TSS_ADDR,
    request_in,
)

_CALLS = (
    *("ioctl", "mmap", "munmap", "mremap", "madvise", "mprotect", "fallocate", "memfd_create"),
    *("close", "dup", "dup2", "dup3", "fcntl", "clone", "clone3", "fork", "vfork", "execve"),
)
_KEPT = frozenset({CREATE_VM, CHECK_EXTENSION, REGION, REGION2, SET_TSS_ADDR}) | CONCERNED
_IOCTL = re.compile(r"(\d+)\s+ioctl\([^,]*,(.*)", re.DOTALL)
_RESUMED = re.compile(r"(\d+)\s+<\.\.\. ioctl resumed>")
_FCNTL = re.compile(r"\d+\s+fcntl\((?!.*F_DUPFD)")


def strace_command(strace: str, output: str, command: Sequence[str]) -> list[str]:
    """Return the command line that runs a command and all its child processes under strace."""
    traced = f"trace={','.join(_CALLS)}"
    options = ["-f", "-qq", "-y", "-s", "0", "-e", traced, "-e", "signal=none", "-o", output]
    return [strace, *options, "--", *command]


class Filter:
    """Keeps the lines about memslots and their memory, both halves of an interrupted call."""

    def __init__(self) -> None:
        self._begun: set[str] = set()

    def keeps(self, line: str) -> bool:
        """Whether to keep a line of strace."""
        if "ioctl" not in line:
            return _FCNTL.match(line) is None
        resumed = _RESUMED.match(line)
        if resumed is not None:
            is_kept = resumed[1] in self._begun
            self._begun.discard(resumed[1])
            return is_kept
        call = _IOCTL.match(line)
        if call is None or request_in(call[2]) not in _KEPT:
            return False
        if "<unfinished" in line:
            self._begun.add(call[1])
        return True
