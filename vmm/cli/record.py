"""``vmm record``: run a VMM under strace, judge what it did, and repeat it."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import click

from vmm.cli.command import Writing
from vmm.cli.errors import NothingRan, Unusable, usable
from vmm.cli.files import allow_large
from vmm.cli.printing import tell
from vmm.cli.replay import ReplayOptions, replayed
from vmm.cli.writing import temporary_folder
from vmm.host.signals import ENDING_SIGNALS
from vmm.replay.recording import Filter, strace_command
from vmm.scenario.demand import Limits

_NO_STRACE = "strace is not installed: `apt install strace`, `dnf install strace`, or the like"


@click.command(
    cls=Writing, documents=("output",), context_settings={"ignore_unknown_options": True}
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep the trace in this file.",
)
@click.option("--judge-only", is_flag=True, help="Judge the trace; run nothing else.")
@allow_large
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def record(
    ctx: click.Context,
    output: Path | None,
    judge_only: bool,
    limits: Limits,
    command: tuple[str, ...],
) -> None:
    """Run a VMM under strace, and replay what it did.

    COMMAND runs as it is, until it ends or is interrupted: `vmm record -- qemu-system-x86_64 ...`.
    What it did to memslots and to their memory is then judged, and carried out, as by `vmm replay`.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise NothingRan(_NO_STRACE)
    if shutil.which(command[0]) is None:
        raise Unusable(f"{command[0]}: no such program")
    with temporary_folder() as folder:
        trace = output or Path(folder) / "trace"
        with usable(trace):
            status, lines = _recorded(strace, Path(folder) / "fifo", trace, command)
        if not lines:
            raise NothingRan(f"strace recorded nothing (its exit status is {status})")
        ended = f"; the command ended with status {status}" if status else ""
        tell(f"recorded {lines} lines{f' in {output}' if output else ''}{ended}")
        ctx.exit(replayed((trace,), ReplayOptions(judge_only, limits=limits)))


def _recorded(strace: str, fifo: Path, trace: Path, command: tuple[str, ...]) -> tuple[int, int]:
    """Run the command, keep what matters of its trace; return its status and the lines kept."""
    os.mkfifo(fifo, 0o600)
    source = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    held = os.open(fifo, os.O_WRONLY)  # Else the file would end before strace has opened it.
    os.set_blocking(source, True)
    with open(source, "rb") as lines, trace.open("wb") as kept, _left_to_the_command() as recorders:
        process = subprocess.Popen(strace_command(strace, str(fifo), command))
        recorders.append(process.pid)
        waiter = threading.Thread(target=_close_at_end, args=(process, held))
        waiter.start()
        count, keeps = 0, Filter().keeps
        for line in lines:
            if keeps(line.decode("ascii", "replace")):
                kept.write(line)
                count += 1
        waiter.join()
    return process.returncode, count


def _close_at_end(process: subprocess.Popen[bytes], fd: int) -> None:
    process.wait()
    os.close(fd)


@contextmanager
def _left_to_the_command() -> Iterator[list[int]]:
    """Let an interruption end the command, but not this program.

    Yields a list for the pid of strace, which blocks such signals. A terminal sends Ctrl-C to the
    command, too; other ending signals reach only this process, which passes them on.
    """
    recorders: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for pid in _children(recorders):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number, handler in before.items():
        if number == signal.SIGINT:
            signal.signal(number, lambda *_: None)
        elif handler is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        yield recorders
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children(parents: list[int]) -> Iterator[int]:
    """Yield the children of these processes."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in parentheses, may contain anything.
            if int(status.read_text().rpartition(")")[2].split()[1]) in parents:
                yield int(status.parent.name)
