"""Leaves out the lines of strace that say nothing of slots, and joins those that were wrapped."""

import re
from collections.abc import Iterable, Iterator

from vmm.replay.lines import MAX_LINE_BYTES
from vmm.replay.numbers import SLOT_REQUESTS
from vmm.replay.syntax import begins
from vmm.replay.trace import CUT_OFF, TORN, Trace

_NAMED = "|".join(sorted(SLOT_REQUESTS))
_OF_MEMORY = (
    "mmap|munmap|mremap|madvise|mprotect|fallocate|memfd|close|dup|fcntl|clone|fork|vfork|exec"
)
_OF_INTEREST = re.compile(
    rf"ioctl(?!\([^,\"]*, (?:op=)?(?!(?:{_NAMED})\b)[A-Z]\w+[,)])"
    rf"|{_OF_MEMORY}|MEMORY_REGION|\+\+\+|^[^(]*<unfinished|\si(?:o(?:ct?)?)?$"
)
"""Matches a line that has to be parsed: an ioctl that names another request has not."""

_OTHER_CALL = rf"""
    (?:\[pid\ +\d+\]\ |\d+\ +)?(?:[0-9:.]+\ )?
    (?:ioctl\((?:fd=)?\d+(?:<[^\n<>"()]*>)?,\ (?:op=)?(?!(?:{_NAMED})\b)[A-Z]\w+[,)]
      |(?!{_OF_MEMORY}|ioctl)[a-z]\w+\()
    [^\n(){{}}]*(?:\{{(?!slot=)[^\n()]*\}}[^\n(){{}}]*)?
    \)\ +=\ (?:-?\d+|0x[0-9a-f]+)(?:\ E[A-Z0-9]+)?(?:\ \([^\n()="]*\))?
    (?:\ <[0-9.]+>)?\r?
"""
BESIDE = re.compile(
    rf"(?>[^\n\x1b]*?(?:\ =\ +[!-~]|<unfin)[^\n\x1b]*)(?:\n{_OTHER_CALL})+(?=\n)".encode(),
    re.VERBOSE,
)
"""Matches a whole line and, after it, usual lines that would not be parsed.

Blanks at its end and colours are no part of a line: without them it has to be whole, too.
"""

_IS_OPEN = re.compile(r"\b(?:ioctl|mmap|munmap|clone3?)\(")
_IS_WHOLE = re.compile(r"\)\s+=\s+(?:0x[0-9a-f]+|\d+|\?|-1 E[A-Z0-9]+)|<unfinished")
_BEFORE_A_CALL = re.compile(r"\s*(?:\[pid\s+)?\d+(?:<[^<>]*>?)?[\]\d\s:.\[()+a-f?-]*$")
"""Matches a line of which no more is left than what stands before a call."""

_REST = re.compile(r"[^(]*\)\s+=\s|\s*=\s+(?:-?\d|0x)")
"""Matches the rest of a call whose beginning is lost."""

_TWO_RESULTS = re.compile(r"\)\s+=\s.*\s=\s")

_TORN_NAME = re.compile(r"(?:\d+ +)?(?:[a-z_]+\d+ +[a-z_]\w*|octl|ctl|tl|l)\(")
"""Matches a call whose name has lost its beginning, or its end and the next line's beginning."""

_MOST_WRAPPED = 8
_NOTICE = re.compile(r"strace: Process \d+ (?:attached|detached)$")


def lines_of_calls(lines: Iterable[tuple[int, str]], trace: Trace) -> Iterator[tuple[int, str]]:
    """Yield the lines that have to be parsed, each whole."""
    for number, line in _unwrapped(_without_notices(_of_interest(lines, trace))):
        if "KVM_RUN" not in line and _is_of_interest(line):
            yield number, line
        elif _BEFORE_A_CALL.match(line) is not None:
            trace.lacks(number, CUT_OFF)
        if _is_torn(line):
            trace.lacks(number, TORN)


def _is_torn(line: str) -> bool:
    """Whether a line is the rest of a call, or has the beginning of one and the rest of another.

    Strings may hold anything, and so may what other programs have written between the calls.
    """
    if _TORN_NAME.match(line) is not None:
        return True
    if "= " not in line or '"' in line or "resumed>" in line or "<unfin" in line:
        return False
    if line.count(" = ") > 1 and _TWO_RESULTS.search(line) is not None:
        return True
    is_unequal = line.count("{") != line.count("}")
    return _REST.match(line) is not None or (is_unequal and _IS_WHOLE.search(line) is not None)


def _is_of_interest(line: str) -> bool:
    """Whether a line has to be parsed: the beginning of any ioctl has, since its end is."""
    return _OF_INTEREST.search(line) is not None or ("<unfin" in line and "ioctl(" in line)


def _of_interest(lines: Iterable[tuple[int, str]], trace: Trace) -> Iterator[tuple[int, str]]:
    """Leave out whole calls that say nothing of slots: nearly all of a long trace.

    What follows a line that is not whole may be its rest, and stays.
    """
    number, is_open = 0, False
    for number, line in lines:
        is_whole = " = " in line or "<unfin" in line
        if is_whole and not is_open and "KVM_RUN" in line:
            continue
        if is_open or not is_whole or _is_of_interest(line):
            is_open = not is_whole
            yield number, line
        elif _is_torn(line):
            trace.lacks(number, TORN)
    trace.lines = number


def _without_notices(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join lines that a notice of strace has split: without -o, both go to standard error."""
    begun, at = "", 0
    for number, line in lines:
        if not begun and "strace: Process" not in line:
            yield number, line
            continue
        whole = begun + line
        notice = _NOTICE.search(whole)
        if notice is None:
            yield number, whole
            begun = ""
        elif len(whole) < MAX_LINE_BYTES:
            begun, at = whole[: notice.start()], number
            if _IS_WHOLE.search(begun) is not None:
                yield at, begun
                begun = ""
    if begun:
        yield at, begun


def _unwrapped(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join calls that a mail or a terminal has wrapped: the next lines do not begin as strace's."""
    begun, at, count = "", 0, 0
    for number, line in lines:
        if begun and (count == _MOST_WRAPPED or begins(line)):
            yield at, begun
            begun = ""
        if begun:
            begun, count = _joined(begun, line), count + 1
        elif " = " not in line and "<unfin" not in line and _IS_OPEN.search(line) is not None:
            begun, at, count = line, number, 1
        else:
            yield number, line
            continue
        if _IS_WHOLE.search(begun) is not None:
            yield at, begun
            begun = ""
    if begun:
        yield at, begun


def _joined(begun: str, line: str) -> str:
    """Return a wrapped call with its next line: a blank is lost where it was wrapped at one."""
    rest = line.lstrip("> |")
    is_at_a_blank = begun[-1] in ",=)" or rest[:1] in ("E", "(")
    return f"{begun} {rest}" if is_at_a_blank else begun + rest
