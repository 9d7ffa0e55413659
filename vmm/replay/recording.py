"""Records a VMM with strace: which calls to trace, and which lines to keep.

strace can select system calls, but not ioctl requests: KVM_RUN alone would be millions of lines.
And it prints only pointers to most of KVM's structures: what they hold is read while their calls
wait, and put in their lines.
"""

import re
from collections.abc import Sequence

from vmm.replay.numbers import SLOT_REQUESTS, request_in

_CALLS = (
    *("ioctl", "mmap", "munmap", "mremap", "madvise", "mprotect", "fallocate", "memfd_create"),
    *("close", "dup", "dup2", "dup3", "fcntl", "clone", "clone3", "fork", "vfork", "execve"),
    "?close_range",  # Not every strace knows it.
)
TRANSLATES = "--decode-pids=pidns"
_IOCTL = re.compile(r"(\d+)\s+ioctl\([^,]*,(.*)", re.DOTALL)
_RESUMED = re.compile(r"(\d+)\s+<\.\.\. ioctl resumed>")
_FCNTL = re.compile(r"\d+\s+fcntl\((?!.*F_DUPFD)")
_POINTER = re.compile(r",\s*0x[0-9a-f]+\)\s+=")
_BEGUN_POINTER = re.compile(r"(,\s*0x[0-9a-f]+)(?=\s*<unfinished)")


def strace_command(
    strace: str, output: str, command: Sequence[str], *, knows_namespaces: bool = False
) -> list[str]:
    """Return the command line that runs a command and all its child processes under strace.

    In a pid namespace a clone returns pids that are not those of the lines; some straces can
    translate them (``knows_namespaces``).
    """
    traced = f"trace={','.join(_CALLS)}"
    options = ["-f", "-qq", "-y", "-s", "0", "-e", traced, "-e", "signal=none", "-o", output]
    if knows_namespaces:
        options.append(TRANSLATES)
    return [strace, *options, "--", *command]


class Filter:
    """Keeps the lines about memslots and their memory, both halves of an interrupted call.

    Where `asked` has told what a call asks for, its line has that in place of a pointer.
    """

    def __init__(self) -> None:
        self._begun: dict[str, str] = {}
        self._asked: dict[str, str] = {}

    def asked(self, thread: int, structure: str) -> None:
        """Note the structure of the call that a thread is about to make."""
        self._asked[str(thread)] = structure

    def kept(self, line: str) -> str:
        """Return what to keep of a line of strace; "" if nothing."""
        if "ioctl" not in line:
            return line if _FCNTL.match(line) is None else ""
        resumed = _RESUMED.match(line)
        if resumed is not None:
            return self._resumed(resumed[1], line)
        call = _IOCTL.match(line)
        if call is None or request_in(call[2]) not in SLOT_REQUESTS:
            return ""
        if "<unfinished" in line:
            begun = _BEGUN_POINTER.search(line)
            self._begun[call[1]] = begun[1] if begun is not None else ""
            return line if begun is None else line[: begun.start()] + line[begun.end() :]
        return self._decoded(call[1], line)

    def _resumed(self, pid: str, line: str) -> str:
        pointer = self._begun.pop(pid, None)
        if pointer is None:
            return ""
        if pointer:  # It stood on the first half, which may have come before its structure.
            line = line.replace("resumed>", f"resumed>{pointer}", 1)
        return self._decoded(pid, line)

    def _decoded(self, pid: str, line: str) -> str:
        structure = self._asked.pop(pid, "")
        return _POINTER.sub(lambda _: f", {structure}) =", line, count=1) if structure else line
