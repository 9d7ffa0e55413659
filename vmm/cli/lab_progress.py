"""What of a check in the lab is seen from outside, and what is left of one that did not end."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from vmm.cli.files import histories_from
from vmm.cli.lab_machines import say
from vmm.cli.said import put
from vmm.cli.selection import curated
from vmm.lab.log import Reports
from vmm.lab.machine import Backend
from vmm.lab.run import Ending
from vmm.scenario.codec import FileError, history_line
from vmm.scenario.endings import HUNG
from vmm.scenario.history import INTERRUPTED, End, Header
from vmm.verdict.statuses import INCONCLUSIVE

HISTORIES = "histories.jsonl"
_OPTION = "--histories"
_OURS = ".vmm-lab-"
_SAY_EVERY_S = 30.0
_GOOD = ("PASSED", "SKIPPED")


class Progress:
    """One line that is drawn again and again on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._is_drawn = False
        self._reports = Reports()
        self._said = ""
        self._said_at = time.monotonic()

    def tell(self, reports: Reports) -> None:
        """Say how far a check is, if that is new."""
        self._reports = reports
        text = f"{reports.begun} of {reports.scenarios} scenarios, {reports.under_way}"
        if not reports.under_way or text == self._said:
            return
        now = time.monotonic()
        if self._is_terminal:
            self.clear()
            click.echo(f"lab: {text}"[:79], nl=False, err=True)
            self._is_drawn = True
        elif now - self._said_at >= _SAY_EVERY_S:
            say(text)
            self._said_at = now
        self._said = text

    def interrupted(self) -> Ending:
        """Return what there is to say when somebody interrupts the machine."""
        name = self._reports.under_way
        why = f"{INTERRUPTED} in {name}" if name else INTERRUPTED
        return Ending(INCONCLUSIVE, why, reports=self._reports)

    def clear(self) -> None:
        """Take the line away, since something else is printed."""
        if self._is_drawn:
            click.echo("\r\033[K", nl=False, err=True)
            self._is_drawn = False


def with_histories(words: tuple[str, ...], backend: Backend) -> tuple[tuple[str, ...], Path | None]:
    """Return a check that writes its histories, and the file; other commands as they are.

    So what ran is not lost where the machine is. (An emulator without the host's files has nothing
    to write them to.)
    """
    options = [word.partition("=")[0] for word in words]
    others = {"--list", "--dask", "--help"}
    if words[0] != "check" or backend is Backend.VMX or others.intersection(options):
        return words, None
    if _OPTION in words[:-1]:
        return words, Path(words[words.index(_OPTION) + 1])
    if _OPTION in options:
        return words, None
    file = Path.cwd().resolve() / f"{_OURS}{time.time_ns():x}.jsonl"
    return (words[0], _OPTION, str(file), *words[1:]), file


def kept(histories: Path, folder: Path) -> Path | None:
    """Move the histories to the logs of their run; None if there are none.

    A file that was asked for stays where it is, too.
    """
    try:
        data = histories.read_bytes()
        if histories.name.startswith(_OURS):
            histories.unlink()
        (folder / HISTORIES).write_bytes(data)
    except OSError:
        return None
    return folder / HISTORIES if data else None


def judge_what_ran(histories: Path, words: tuple[str, ...], ending: Ending) -> None:
    """Judge here what a check left when its machine was lost; the files it was to write are made.

    The scenario that was under way is inconclusive, for the reason that the machine gave.
    """
    try:
        headers = [each.header for each in histories_from(histories)]
    except FileError:
        return
    last = _under_way(headers, ending)
    with histories.open("ab") as file:
        file.write(last)
    say(f"what ran until then ({ending.reports.begun} of {ending.reports.scenarios} had begun):")
    command = [sys.executable, "-P", "-m", "vmm.cli", "judge", str(histories)]
    done = subprocess.run([*command, *_formats(words)], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if not line.startswith(_GOOD) or {"-v", "--verbose"}.intersection(words):
            put(f"{line}\n")
    click.echo(done.stderr, nl=False, err=True)


def _under_way(headers: list[Header], ending: Ending) -> bytes:
    """Return a history of nothing for the scenario that began last, if it has left none."""
    name, first = ending.reports.under_way, headers[0]
    if name in {header.scenario.name for header in headers}:
        return b""
    for scenario in curated(first.features):
        if scenario.name == name:
            begun = Header(scenario, first.features, first.host)
            return history_line(begun) + history_line(End(f"{HUNG}{ending.why}"))
    return b""


def _formats(words: tuple[str, ...]) -> Iterator[str]:
    """Yield those words of a check that say how it is reported."""
    rest = iter(words)
    for word in rest:
        if word in ("--json", "--html", "--format"):
            yield from (word, next(rest, ""))
        elif word.startswith(("--json=", "--html=", "--format=")) or word in ("-v", "--verbose"):
            yield word
    if not {"-v", "--verbose"}.intersection(words):
        yield "-q"
