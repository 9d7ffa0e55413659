"""Kernel health: did the kernel complain while we used it?

A wrong answer is one kind of failure; a WARN, a BUG, an oops or a taint is another, and shows only
in ``/proc/sys/kernel/tainted``, ``/sys/kernel/warn_count`` and ``oops_count`` (both since Linux
6.2), and in the kernel log. ``KernelWatch`` reads all of them often, for tens of microseconds each
time, so that a complaint can be attributed to what was being done.
"""

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vmm.host.roots import THIS_HOST, Roots

TAINTS = {
    0: "P: a proprietary module was loaded",
    1: "F: a module was force loaded",
    2: "S: the kernel runs out of its specification",
    3: "R: a module was force unloaded",
    4: "M: the processor reported a machine check",
    5: "B: a bad page was referenced",
    6: "U: userspace asked for the taint",
    7: "D: the kernel died recently (oops or BUG)",
    8: "A: an ACPI table was overridden",
    9: "W: the kernel issued a warning",
    10: "C: a staging driver was loaded",
    11: "I: a firmware bug was worked around",
    12: "O: an out-of-tree module was loaded",
    13: "E: an unsigned module was loaded",
    14: "L: a soft lockup happened",
    15: "K: the kernel was live patched",
    16: "X: auxiliary taint of the distribution",
    17: "T: built with the struct randomisation plugin",
    18: "N: an in-kernel test was run",
    19: "J: userspace used a mutating debug operation of fwctl",
}
"""Each bit of the taint mask (Documentation/admin-guide/tainted-kernels.rst)."""

_WARNED = 1 << 9
_COMPLAINT = re.compile(
    r"\b(WARNING: |BUG: |kernel BUG at|Oops: |general protection fault|INFO: task .* blocked"
    r"|INFO: rcu|INFO: possible|rcu: INFO:|UBSAN:|refcount_t:|unchecked MSR access error)"
)
_CUT_HERE = "[ cut here ]"
_CHILD = re.compile(r"\bvmm\d+-\d+\b")
_END_TRACE = "end trace"
_EXCERPT_LINES = 40
_RECORD_BYTES = 1 << 13  # More than the longest record of /dev/kmsg.


@dataclass(frozen=True, slots=True)
class Problem:
    """A complaint of the kernel; ``excerpt`` is its log, line by line.

    >>> from vmm import Problem
    >>> Problem("WARNING: at mmu.c:1", ("[ cut here ]", "WARNING: at mmu.c:1")).what
    'WARNING: at mmu.c:1'
    """

    what: str
    excerpt: tuple[str, ...] = ()


def without_others(problems: Sequence[Problem], name: str) -> tuple[Problem, ...]:
    """Return the complaints that may be about a child of this name (see `vmm.host.child.name_of`).

    Complaints whose log names another child are left out, and so are counters if nothing else is
    left.
    """
    told = [problem for problem in problems if problem.excerpt]
    ours = [problem for problem in told if not _names_another(problem, name)]
    if told and not ours:
        return ()
    return (*ours, *(problem for problem in problems if not problem.excerpt))


def names_child(problem: Problem, name: str) -> bool:
    """Whether the log of a complaint names this child."""
    return name in _children(problem)


def _names_another(problem: Problem, name: str) -> bool:
    return bool(_children(problem)) and not names_child(problem, name)


def _children(problem: Problem) -> set[str]:
    return {name for line in problem.excerpt for name in _CHILD.findall(line)}


@dataclass(frozen=True, slots=True)
class Counters:
    """The kernel's counts of complaints; None for those that cannot be read."""

    taint: int | None
    warnings: int | None
    oopses: int | None


class KernelWatch:
    """Watches the kernel from its creation on. A context manager: it keeps the log open.

    ``weaknesses`` says what could not be watched, or would have been missed.
    """

    def __init__(self, roots: Roots = THIS_HOST) -> None:
        self._roots = roots
        self._counters = read_counters(roots)
        self._log = -1
        self.weaknesses: list[str] = []
        try:
            self._log = os.open(roots.kmsg, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._log, 0, os.SEEK_END)
        except OSError as error:
            self.close()
            self._weaken_for_log(error)
        self._weaken_for_counters()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the kernel log."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def news(self) -> tuple[Problem, ...]:
        """Return the kernel's complaints since the last call; empty if there are none."""
        before, self._counters = self._counters, read_counters(self._roots)
        problems = [
            Problem(lines[0] if _CUT_HERE not in lines[0] or len(lines) == 1 else lines[1], lines)
            for lines in excerpts(self._new_log_lines())
        ]
        return (*problems, *_counted(before, self._counters))

    def _new_log_lines(self) -> list[str]:
        lines: list[str] = []
        while self._log >= 0:
            try:
                data = os.read(self._log, _RECORD_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:  # Overwritten: the next read continues after it.
                    self._weaken("part of the kernel log was overwritten before it was read")
                    continue
                self.close()
                self._weaken_for_log(error)
                break
            if not data:
                break
            lines += kernel_messages(data)
        return lines

    def _weaken(self, text: str) -> None:
        if text not in self.weaknesses:
            self.weaknesses.append(text)

    def _weaken_for_log(self, error: OSError) -> None:
        self._weaken(
            f"kernel log not readable: {self._roots.kmsg}: {error.strerror}: a complaint that "
            "leaves no other trace is missed (CAP_SYSLOG or kernel.dmesg_restrict=0 is needed)"
        )

    def _weaken_for_counters(self) -> None:
        counters = self._counters
        names = {
            "/proc/sys/kernel/tainted": counters.taint,
            "/sys/kernel/warn_count": counters.warnings,
            "/sys/kernel/oops_count": counters.oopses,
        }
        missing = [name for name, value in names.items() if value is None]
        if missing:
            self._weaken(f"not readable: {', '.join(missing)}")
        if not (self._roots.proc / "self/maps").exists():
            self._weaken(f"no {self._roots.proc}: what a VM leaves in its process is missed")
        if counters.warnings or (counters.taint or 0) & _WARNED:
            self._weaken(
                "the kernel has warned before this run: a WARN_ON_ONCE prints once a boot, so that "
                "one already spent is missed (reboot, or write 1 to "
                "/sys/kernel/debug/clear_warn_once)"
            )


def read_counters(roots: Roots = THIS_HOST) -> Counters:
    """Return the kernel's counters."""
    return Counters(
        _number(roots.proc / "sys/kernel/tainted"),
        _number(roots.sys / "kernel/warn_count"),
        _number(roots.sys / "kernel/oops_count"),
    )


def kernel_messages(data: bytes) -> list[str]:
    """Return the messages in records of /dev/kmsg that the kernel itself logged.

    A record is ``PREFIX,SEQUENCE,TIME,FLAGS;MESSAGE``; lines that begin with a space continue it.
    The prefix holds the facility above its low three bits: 0 is the kernel; anything else was
    written by a process, and may say anything.
    """
    messages = []
    for line in data.decode(errors="replace").splitlines():
        head, semicolon, text = line.partition(";")
        prefix = head.partition(",")[0]
        if semicolon and prefix.isdigit() and int(prefix) < 8:
            messages.append(text)
    return messages


def excerpts(lines: list[str]) -> list[tuple[str, ...]]:
    """Return the complaints in a kernel log, from "cut here" to "end trace"."""
    found: list[list[str]] = []
    open_excerpt: list[str] | None = None
    for line in lines:
        begins = _CUT_HERE in line or (open_excerpt is None and _COMPLAINT.search(line))
        if begins:
            open_excerpt = [line]
            found.append(open_excerpt)
        elif open_excerpt is not None:
            open_excerpt.append(line)
            if _END_TRACE in line or len(open_excerpt) == _EXCERPT_LINES:
                open_excerpt = None
    return [tuple(excerpt) for excerpt in found]


def _counted(before: Counters, after: Counters) -> list[Problem]:
    problems = []
    new = (after.taint or 0) & ~(before.taint or 0)
    if before.taint is not None and new:
        bits = [bit for bit in range(new.bit_length()) if new >> bit & 1]
        names = "; ".join(TAINTS.get(bit, f"bit {bit}") for bit in bits)
        problems.append(Problem(f"the kernel is newly tainted ({names})"))
    for name, old, now in (
        ("warn_count", before.warnings, after.warnings),
        ("oops_count", before.oopses, after.oopses),
    ):
        if old is not None and now is not None and now > old:
            problems.append(Problem(f"{name} went from {old} to {now}"))
    return problems


def _number(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # It costs a fifth of read_text.
        try:
            return int(os.read(fd, 64))
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return None
