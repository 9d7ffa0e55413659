"""Merges the files of `strace -ff -o NAME`, one for each thread (NAME.PID), into one stream.

Their lines are ordered by their timestamps, which -tt and -ttt write with enough precision, and
numbered as `strace-log-merge NAME` prints them: pid, time, call.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from heapq import heappop, heappush, merge
from pathlib import Path
from typing import NamedTuple

from vmm.replay.lines import Numbered, opened
from vmm.replay.trace import TraceError

MAX_FILES = 500
"""The most files that are open at a time."""

_OF_A_THREAD = re.compile(r"(.+)\.([0-9]{1,7})$")
_TIME = re.compile(r"\s*(?:\d{4}-\d\d-\d\dT)?(?:(\d{9,}\.\d+)|(\d\d):(\d\d):(\d\d\.\d+))\s")
_DAY_S = 86_400.0
_ON_KVM = re.compile(r"\bioctl\(.*(?:KVM_(?!RUN\b)|\b0xae\b|0x[0-9a-f]{4}ae[0-9a-f]{2}\b)")
_TOOK = re.compile(r"<(\d+\.\d+)>$")  # strace -T


class _Line(NamedTuple):
    time: float
    file: int
    number: int
    text: str


def files_of(paths: Sequence[Path]) -> tuple[str, list[Path]]:
    """Return the name of a trace, and its files: several if `strace -ff` wrote them.

    ``paths`` is a file, the NAME of `strace -ff -o NAME`, a folder of such files, or several such
    files. Raises TraceError.
    """
    if len(paths) > 1:
        names = {_name_of(path) for path in paths}
        if len(names) != 1 or "" in names:
            raise TraceError("one trace at a time; of `strace -ff -o NAME` the files NAME.PID")
        return names.pop(), _bounded(sorted(paths))
    (path,) = paths
    try:
        return _found(path)
    except OSError:  # Opening it will report the error.
        return str(path), [path]


def _found(path: Path) -> tuple[str, list[Path]]:
    """Return the same for one path. Raises TraceError for an unsuitable folder."""
    if path.is_dir():
        files = _bounded(_threads_in(path))
        if len({_name_of(file) for file in files}) != 1:
            raise TraceError(
                f"{path}: a folder, and not one of what one `strace -ff -o NAME` wrote"
            )
        return _name_of(files[0]), files
    if str(path) != "-" and not path.exists() and path.parent.is_dir():
        files = [file for file in _threads_in(path.parent) if _name_of(file) == str(path)]
        return str(path), _bounded(files) or [path]
    return str(path), [path]


def _threads_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if _OF_A_THREAD.match(file.name))


def _name_of(file: Path) -> str:
    found = _OF_A_THREAD.match(str(file))
    return found[1] if found is not None else ""


def _bounded(files: list[Path]) -> list[Path]:
    if len(files) > MAX_FILES:
        raise TraceError(
            f"{files[0]}: one of {len(files)} files, and {MAX_FILES} are read at most: "
            "`strace-log-merge NAME | vmm replay -`"
        )
    return files


class Merged:
    """Yields the lines of all files in the order of their times, numbered from 1.

    A line has the time at which its call began. ``ends`` says when calls on KVM were over that
    others may have overtaken: the number of the first line that is later for certain.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._last: dict[int, int] = {}
        self._timed: list[tuple[float, int]] = []
        self.ends: dict[int, int] = {}

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Raises TraceError if a file has no timestamps, OSError if one is damaged."""
        with ExitStack() as stack:
            streams = [
                _timed(index, file, Numbered(stack.enter_context(opened(file))))
                for index, file in enumerate(self._files)
            ]
            for number, line in enumerate(merge(*streams), 1):
                self._note(number, line)
                yield number, line.text

    def _note(self, number: int, line: _Line) -> None:
        """Note which calls were over when a line's call began, and that this one begins."""
        while self._timed and self._timed[0][0] < line.time:
            self._over(heappop(self._timed)[1], number)
        before = self._last.pop(line.file, None)
        if before is not None:
            self._over(before, number)
        if _ON_KVM.search(line.text) is not None:
            took = _TOOK.search(line.text)
            if took is None:
                self._last[line.file] = number
            else:
                heappush(self._timed, (line.time + float(took[1]), number))

    def _over(self, call: int, number: int) -> None:
        if number > call + 1:
            self.ends.setdefault(call, number)


def _timed(index: int, file: Path, lines: Numbered) -> Iterator[_Line]:
    found = _OF_A_THREAD.match(file.name)
    pid = found[2] if found is not None else "0"
    before, days = 0.0, 0.0
    for number, text in lines:
        time = _TIME.match(text)
        if time is not None:
            now = float(time[1]) if time[1] else _of_the_day(time[2], time[3], time[4]) + days
            if now < before - _DAY_S / 2:  # -tt writes only the time of day: this is the next day.
                days += _DAY_S
                now += _DAY_S
            before = max(before, now)
        elif not before:
            raise TraceError(
                f"{file}:{number}: no exact time, so that the order of what threads did is not "
                "known: trace with `strace -ff -ttt -o NAME`, or `strace -f -o FILE` into one"
            )
        yield _Line(before, index, number, f"{pid} {text}")


def _of_the_day(hours: str, minutes: str, seconds: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
