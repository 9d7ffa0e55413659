"""Reads the kernel log of a machine: the init's reports, and the kernel's complaints."""

import re
from dataclasses import dataclass, field
from pathlib import Path

SIGN = "VMM_LAB"
"""The environment variable that tells a command in the machine the prefix of the lab's lines."""

_COMPLAINT = re.compile(
    r"Kernel panic - not syncing|WARNING: |BUG: |Oops: |kernel BUG at|general protection fault"
    r"|UBSAN: |KASAN: |divide error|stack segment|double fault|Unable to handle kernel"
    r"|BUG kvm|Objects remaining|possible circular locking|INFO: possible|suspicious RCU usage"
)
_STALL = re.compile(r"soft lockup|rcu.*stall|blocked for more than|hrtimer: interrupt took")
"""On an emulated machine these only say how busy the host is."""

_FATAL = re.compile(r"Kernel panic - not syncing")
_STAMP = re.compile(r"^\[ *\d+\.\d+\](\[[ TC]*\d+\])? ?")
_NOT_LOADED = re.compile(r"module (\w+) does not load")
_WHERE = re.compile(r"RIP: 0010:([a-z_]\S+\+0x\S+)")


@dataclass(slots=True)
class Reports:
    """What a log says so far. ``complaint`` is the kernel's first since it booted, with its place.

    ``has_begun`` says that the complaint came after the command had begun. Of the command's
    ``scenarios``, ``begun`` have begun or were skipped; ``started`` names those that have begun,
    and ``under_way`` is the last of them.
    """

    has_booted: bool = False
    is_waiting: bool = False
    is_ready: bool = False
    is_over: bool = False
    status: int | None = None
    fatal: str = ""
    complaint: str = ""
    has_begun: bool = False
    has_panicked: bool = False
    scenarios: int = 0
    begun: int = 0
    under_way: str = ""
    started: list[str] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    last_line: str = ""


class LogReader:
    """Reads a log as it grows."""

    def __init__(self, path: Path, nonce: str) -> None:
        self._path = path
        self._sign = f"memslot-lab {nonce} "
        self.size = 0
        """How many bytes were read."""
        self._rest = b""
        self.reports = Reports()

    def read(self) -> Reports:
        """Read what is new, and return all that is known."""
        try:
            with self._path.open("rb") as file:
                file.seek(self.size)
                new = file.read()
        except FileNotFoundError:
            return self.reports
        self.size += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            self._take(plain(line.decode(errors="replace")))
        return self.reports

    def close(self) -> Reports:
        """Read the last line, too, though it is incomplete."""
        reports = self.read()
        self._take(plain(self._rest.decode(errors="replace")))
        self._rest = b""
        return reports

    def _take(self, line: str) -> None:
        if self._sign in line:
            self._take_report(line.partition(self._sign)[2])
            return
        reports = self.reports
        if line.strip():
            reports.last_line = line
        reports.has_panicked |= bool(_FATAL.search(line))
        if _COMPLAINT.search(line) and not _STALL.search(line) and not reports.complaint:
            reports.complaint, reports.has_begun = line, reports.is_ready
        elif (
            (where := _WHERE.search(line)) and reports.complaint and " at " not in reports.complaint
        ):
            reports.complaint += f" (at {where[1]})"

    def _take_report(self, report: str) -> None:
        kind, _, rest = report.partition(" ")
        match kind:
            case "booted":
                # Kernels warn about an emulated processor's peculiarities while they boot.
                self.reports.complaint = ""
                self.reports.has_booted = True
            case "alive":
                pass
            case "scenarios" if rest.isdigit():
                self.reports.scenarios = int(rest)
            case "begin":
                self.reports.under_way = rest
                self.reports.started.append(rest)
                self.reports.begun += 1
            case "skip":
                self.reports.begun += 1
            case "waiting":
                self.reports.is_waiting = True
            case "ready":
                self.reports.is_ready = True
            case "over":
                self.reports.is_over = True
            case "status" if rest.isdigit():
                self.reports.status = int(rest)
            case "fatal":
                self.reports.fatal = rest + _in_the_kernels_words(rest, self.reports.last_line)
            case "parameter":
                name, _, value = rest.partition("=")
                self.reports.parameters[name] = value
            case "note":
                self.reports.notes.append(rest)
            case _:
                self.reports.notes.append(f"not understood: {report}")


def _in_the_kernels_words(report: str, last_line: str) -> str:
    """Return what the kernel said of a module just before it was reported not to load."""
    module = _NOT_LOADED.match(report)
    names = (module[1], module[1].replace("_", "-")) if module else ()
    return f" ({last_line})" if any(f"{name}: " in last_line for name in names) else ""


def plain(line: str) -> str:
    """Return a line without its timestamp and without control characters."""
    return "".join(char for char in _STAMP.sub("", line.strip("\r\n")) if char.isprintable())
