"""Parses strace's lines: the pid, the name of the call, its arguments and its result.

The prefix of a line depends on strace's options: a pid, the command's name, one or two times, a
number or an address, or all of these (-f, -Y, -t to -ttt, -r, -n, -i). Before that stands what
others add: a mail quotes the line with ">", grep and cat number it, the log of a container or of a
CI job has a time, and a system log has date, host and program.
"""

import errno
import re
from collections import Counter
from collections.abc import Iterator

import msgspec

from vmm.replay.numbers import is_of_64_bits, literal
from vmm.replay.trace import BEGINNING_LOST, JOINED

MAX_PID = 1 << 22

_PREFIX = re.compile(
    r"""\s*
    (?:[>|][\s>|]*)?
    (?:\d+\t\s*)?                                # cat -n
    (?:(?!\d\d:\d\d:\d\d(?:\.\d+)?\s|\d{4}-\d\d-\d\dT)[^\s:"'(){}\[\]<>=]+:){0,2}\s*  # grep -Hn
    (?:
        (?:[A-Z][a-z]{2}\s+\d+\s+\d\d:\d\d:\d\d
          |\d{4}-\d\d-\d\dT\S+
          |\d\d:\d\d:\d\d(?:\.\d+)?
        )\s+
        (?:\S+\s+[\w.-]+\[\d+\]:\s+)?
    )?
    (?:\[pid\s+(\d+)(?:<[^>]*>)?\]\s+|(\d+)(?:<[^>]*>)?\s+)?
    (?:
        (?:\d{4}-\d\d-\d\dT[\d:.]+(?:[+-]\d\d:?\d\d|Z)?
          |\d{1,2}:\d\d:\d\d(?:\.\d+)?
          |\d+\.\d+
          |\d+(?=\s+(?:\(|\d|\[|<|[a-z_]))
          |\(\+\s*\d+(?:\.\d+)?\)
          |\[\s*[0-9a-f?]+\]
        )\s+
    )*""",
    re.VERBOSE,
)
_USUAL_PREFIX = re.compile(r"(?:\[pid +(\d+)\] |(\d+) +)(?=[a-z<+-])")
"""Matches what most lines begin with, more quickly."""

_TWO_PIDS = re.compile(r"(?:\[pid +)?(\d+)\]? +(?:\[pid +)?(\d+)\]? +(?=[a-z<+-])")

_CALL = re.compile(r"([a-z_][a-z0-9_]*)\(")
_RESUMED = re.compile(r"<\.\.\.\s+([a-z_][a-z0-9_]*)\s+resumed>\s*")
_UNFINISHED = re.compile(r"\s*<(?:unfinished \.\.\.|\.\.\. detached|detached \.\.\.)>?\s*$")
_ENDS = re.compile(r"\)\s*=\s+")
_RESULT = re.compile(
    r"""(0x[0-9a-f]+|-?\d+|\?)      # a number, or "?"
    (?:<.*?>(?=\s|$))?              # what -y says of a file
    (?:\s+(E[A-Z0-9]+))?""",
    re.VERBOSE,
)
_OUTSIDE = re.compile(r"/\* (\d{1,10}) in strace's PID NS \*/")
"""Matches the pid of a child as strace has it, if its parent is in another pid namespace."""

_FIELD = re.compile(r"([a-z_]+)=([^,{}]*)")
_FIELD_NAME = re.compile(r"[,{] *(\w+)=")
_COMMENT = re.compile(r"\s*/\*.*?\*/")
_FD = re.compile(r"(-?(?:0x[0-9a-f]+|\d+))(?:<(.*?)>)?(?=\s*(?:,|$|/\*))")
_EVENT = re.compile(r"(\+\+\+|---)\s+(\w+)")
_ANOTHER = re.compile(r"ioctl\((?:fd=)?(?:0x)?\d.*\) *=")
"""Matches another call within one that was cut off: its arguments have no such text."""

_STRUCTURE = re.compile(r'[,(\[{)\]}]|"(?:[^"\\]|\\.)*(?:"|$|\\$)', re.DOTALL)
"""Matches what separates and encloses arguments, and strings as a whole."""

_ARGUMENT_NAME = re.compile(r"^\s*[a-z_][a-z0-9_]*=")
ON_A_SLOT = re.compile(r"\bioctl\((?:fd=)?(?:0x)?\d.*\bKVM_SET_USER_MEMORY_REGION")
"""Matches a call on a slot, whatever stands before it, and wherever it ends."""

_OF_A_SLOT = re.compile(
    r"ioctl\([^,]*, (?:op=|request=)?"
    r"(?:KVM_\w+|_IOC\([^)]*\)|0x[0-9a-f]+)(?: /\*.*?\*/)?, (?:arg=|argp=)?\{slot="
    r"|<\.\.\. ioctl resumed>,? *\{slot="
)
"""Matches a call with the structure of a slot where such a structure stands."""

_NAMES_A_SLOT = re.compile(r"\bKVM_SET_USER_MEMORY_REGION2?, \{slot=\d")
"""Matches what is left of such a call if even its name is damaged."""


class Called(msgspec.Struct, frozen=True, gc=False):
    """One whole call. ``returned`` is None if the trace does not say.

    ``begin`` is the line on which it began, ``number`` that on which it ended.
    """

    number: int
    begin: int
    pid: int
    name: str
    arguments: str
    returned: int | None
    error: int
    text: str
    is_injected: bool = False


class Begun(msgspec.Struct, frozen=True, gc=False):
    """A call that makes a thread or a process is under way: the child may act before it returns."""

    pid: int
    name: str
    arguments: str


class Exited(msgspec.Struct, frozen=True, gc=False):
    """A process or a thread has ended."""

    number: int
    pid: int


class Unparsed(msgspec.Struct, frozen=True, gc=False):
    """A line that is cut off within a call: the call's name, and the rest of the line.

    ``is_strange`` says that it has the call, but does not begin as a line of strace's.
    """

    number: int
    pid: int
    name: str
    text: str
    is_strange: bool = False


Item = Called | Begun | Exited | Unparsed

MAKERS = ("clone", "clone3", "fork", "vfork")
"""The calls that make a thread or a process."""

_ENDS_OF_IOCTL = frozenset({"octl", "ctl", "tl", "l"})
"""What is left of a call's name whose beginning is lost."""

_FEW = 64
_MAX_PIDS = 1 << 16
MAX_WAITING = 1 << 14
"""How many calls are under way at a time at the most."""

MAX_BEGUN = 1 << 12
"""How much of a call that is under way is kept: more than a call on memory or a VM has."""


class Joiner:
    """Joins lines to whole calls: an "unfinished" one waits until it is "resumed"."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[int, str, str]] = {}
        self._lost: list[Unparsed] = []
        self._headless = 0
        self._two_pids = 0
        self._pids: dict[str, tuple[int, bool]] = {}
        """Where each pid stands first, and whether it stands there alone."""

    def item(self, number: int, line: str) -> Item | None:
        """Return the item that a line completes; None if it completes none."""
        prefix = _USUAL_PREFIX.match(line) or _PREFIX.match(line)
        assert prefix is not None
        pid = int(prefix[1] or prefix[2] or 0)
        is_new = self._is_new(number, prefix[1] or prefix[2] or "")
        two = _TWO_PIDS.match(line)
        if two is not None and (two[1] == two[2] or two[2] in self._pids):
            self._two_pids = self._two_pids or number
        pid = pid if pid < MAX_PID else 0
        rest = line[prefix.end() :]
        call = _CALL.match(rest)
        if _is_broken_into(rest) or (call is not None and call[1] in _ENDS_OF_IOCTL):
            self._lose(pid)
            return Unparsed(number, pid, "ioctl", rest)
        if call is not None:
            return self._begun(number, pid, call[1], rest[call.end() :], line)
        resumed = _RESUMED.match(rest)
        if resumed is not None:
            if pid and not is_new and resumed[1] == "ioctl" and not self._has_begun(pid, "ioctl"):
                self._is_headless(number, rest[resumed.end() :])
            return self._resumed(number, pid, resumed[1], rest[resumed.end() :], line)
        event = _EVENT.match(rest)
        if event is not None and event[1] == "+++":
            self._waiting.pop(pid, None)
            return Exited(number, pid)
        is_begun = bool(pid and rest) and "ioctl(".startswith(rest)
        if is_begun or ("(" not in rest and _UNFINISHED.search(rest) is not None):
            return Unparsed(number, pid, "", line)
        if ON_A_SLOT.search(rest) is not None:
            return Unparsed(number, pid, "ioctl", line, is_strange=True)
        if _NAMES_A_SLOT.search(rest) is not None:
            return Unparsed(number, pid, "", line)
        return None

    def lost(self) -> list[Unparsed]:
        """Return the calls since last asked whose thread has begun or ended another one."""
        lost, self._lost = self._lost, []
        return lost

    def left(self) -> Iterator[Unparsed]:
        """Yield the calls that were never resumed."""
        for pid, (begin, name, text) in self._waiting.items():
            yield Unparsed(begin, pid, name, text)

    def lacking(self) -> Iterator[tuple[int, str]]:
        """Yield the lines that show that others were lost, and why."""
        if self._headless:
            yield self._headless, BEGINNING_LOST
        begun = Counter(pid[:at] for pid in self._pids for at in range(1, len(pid)))
        joined = [
            first
            for pid, (first, alone) in self._pids.items()
            if alone and self._is_two(pid, begun)
        ]
        if self._two_pids:
            joined.append(self._two_pids)
        if joined:
            yield min(joined), JOINED

    def _is_new(self, number: int, pid: str) -> bool:
        """Note a pid as it stands; return whether it stands nowhere before."""
        first = self._pids.get(pid)
        if first is None and len(self._pids) < _MAX_PIDS:
            self._pids[pid] = number, True
        elif first is not None and first[1]:
            self._pids[pid] = first[0], False
        return first is None

    def _is_two(self, pid: str, begun: Counter[str]) -> bool:
        """Whether a pid is the beginning of one and all of another: a line was joined to the next.

        ``begun`` counts the pids that begin with a text and go on. Threads have consecutive pids,
        and so one is hardly ever the end of another.
        """
        return any(
            pid[at:] in self._pids and begun[pid[:at]] + (pid[:at] in self._pids) > 1
            for at in range(1, len(pid) - 1)
        )

    def _has_begun(self, pid: int, name: str) -> bool:
        return self._waiting.get(self._beginner(pid, name), (0, "", ""))[1] == name

    def _is_headless(self, number: int, rest: str) -> None:
        """Note the end of a call without its beginning, which had all arguments.

        KVM_RUN has not, and many leave it out of a trace.
        """
        if rest.startswith(")"):
            self._headless = self._headless or number

    def _begun(self, number: int, pid: int, name: str, rest: str, line: str) -> Item | None:
        self._lose(pid)
        unfinished = _UNFINISHED.search(rest)
        if unfinished is not None:
            text = rest[: min(unfinished.start(), MAX_BEGUN)]
            if len(self._waiting) >= MAX_WAITING:
                return Unparsed(number, pid, name, f"{name}({text}")
            self._waiting[pid] = (number, name, text)
            return Begun(pid, name, rest) if name in MAKERS else None
        return _whole(number, number, pid, name, rest, line)

    def _lose(self, pid: int) -> None:
        if pid in self._waiting and pid:  # Without pids, it may be another thread's call.
            begin, name, text = self._waiting.pop(pid)
            self._lost.append(Unparsed(begin, pid, name, f"{name}({text}"))

    def _resumed(self, number: int, pid: int, name: str, rest: str, line: str) -> Item | None:
        pid = self._beginner(pid, name)
        begin, begun, text = self._waiting.get(pid, (0, "", ""))
        if begun != name:  # It began before the trace, or on a line that was skipped.
            self._lose(pid)
            return None
        del self._waiting[pid]
        unfinished = _UNFINISHED.search(rest)
        if unfinished is not None:
            self._waiting[pid] = (begin, name, (text + rest[: unfinished.start()])[:MAX_BEGUN])
            return None
        joined = text + rest
        return _whole(number, begin, pid, name, joined, f"{name}({joined}")

    def _beginner(self, pid: int, name: str) -> int:
        """Return the pid with which a resumed call began.

        Without -o, strace leaves out the pid of a process while it is the only one.
        """
        if pid in self._waiting:
            return pid
        if pid or len(self._waiting) > _FEW:
            return 0 if self._waiting.get(0, (0, "", ""))[1] == name else pid
        same = [each for each, (_, begun, _) in self._waiting.items() if begun == name]
        return same[0] if len(same) == 1 else pid


def _is_broken_into(rest: str) -> bool:
    """Whether a call on a slot stands within another call, which was cut off, not in a string."""
    if ", {slot=" in rest and '"' not in rest and _OF_A_SLOT.match(rest) is None:
        return _CALL.match(rest) is not None or _RESUMED.match(rest) is not None
    found = ON_A_SLOT.search(rest)
    if found is None or not found.start() or '"' in rest[: found.start()]:
        return False
    return _CALL.match(rest) is not None or _RESUMED.match(rest) is not None


def begins(line: str) -> bool:
    """Whether a line begins as one of strace's: with a call, the rest of one, or an event."""
    prefix = _PREFIX.match(line)
    assert prefix is not None
    return any(kind.match(line, prefix.end()) for kind in (_CALL, _RESUMED, _EVENT))


def _whole(number: int, begin: int, pid: int, name: str, rest: str, line: str) -> Item:
    ends = list(_ENDS.finditer(rest))
    if not ends:
        return Unparsed(number, pid, name, line)
    end = ends[-1]
    result = _RESULT.match(rest, end.end())
    if result is None or _ANOTHER.search(rest) is not None:
        return Unparsed(number, pid, name, line)
    returned, error = _returned(result[1], result[2])
    if name in MAKERS:
        outside = _OUTSIDE.search(rest, result.end())
        returned = int(outside[1]) if outside is not None else returned
    arguments = rest[: end.start()]
    return Called(
        number,
        begin,
        pid,
        name,
        arguments if name == "clone" else unnamed(arguments),  # clone's always have names.
        returned,
        error,
        line,
        "(INJECTED)" in rest[end.end() :],
    )


def _returned(text: str, name: str | None) -> tuple[int | None, int]:
    """Return what a call returned, and the errno; None if neither is known."""
    if text == "?":
        return None, 0
    value = literal(text)
    if value != -1:
        return (value, 0) if is_of_64_bits(value) else (None, 0)
    known = getattr(errno, name or "", None)  # Without a name the line is cut off.
    return (value, known) if isinstance(known, int) else (None, 0)


def unnamed(arguments: str) -> str:
    """Return the arguments of a call without the names that strace -N puts in front of them."""
    if _ARGUMENT_NAME.match(arguments) is None:
        return arguments
    return ", ".join(_ARGUMENT_NAME.sub("", each, count=1) for each in split(arguments))


def split(arguments: str) -> list[str]:
    """Split the arguments of a call at commas outside of brackets and quotes."""
    parts: list[str] = []
    depth, start = 0, 0
    for found in _STRUCTURE.finditer(arguments):
        char = found[0]
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth <= 0:
            parts.append(arguments[start : found.start()].strip())
            start = found.end()
    parts.append(arguments[start:].strip())
    return parts


def file_of(arguments: str) -> tuple[int, str, str] | None:
    """Return the fd at the start of arguments, what -y says about it, and the other arguments."""
    match = _FD.match(arguments)
    if match is None:
        return None
    return literal(match[1]), match[2] or "", arguments[match.end() :].lstrip().removeprefix(",")


def number_of(text: str) -> int | None:
    """Return a number as strace writes it: decimal, octal, hexadecimal, NULL, with a comment."""
    plain = _COMMENT.sub("", text).strip() if "/*" in text else text.strip()
    if plain == "NULL":
        return 0
    try:
        number = literal(plain)
    except ValueError:
        return None
    return number if is_of_64_bits(number) else None


def is_whole(structure: str) -> bool:
    """Whether a structure begins and ends once, and has each of its fields once."""
    names = _FIELD_NAME.findall(structure)
    is_one = structure.count("{") == structure.count("}") == 1 and structure.endswith("}")
    return is_one and len(set(names)) == len(names) == structure.count("=")


def fields_of(text: str) -> dict[str, str]:
    """Return the fields of a structure as strace prints it; empty if it is only a pointer."""
    if not text.startswith("{"):
        return {}
    return {name: value.strip() for name, value in _FIELD.findall(text)}
