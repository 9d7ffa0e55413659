"""A command that ends without a result writes one that says why.

So nobody takes the file of an earlier run for this one's. Only if arguments or files prove unusable
(status 2) was nothing executed, and the old file stays.
"""

import os
import select
import signal
import stat
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click

from vmm.host.signals import ENDING_SIGNALS, is_interruption
from vmm.scenario.endings import INTERRUPTED, is_short, of_the_host
from vmm.verdict import statuses

STDOUT = "-"
_PRINTED = f"{__name__}.printed"


@dataclass(frozen=True, slots=True)
class Early:
    """Why a command ended early, and with which status; ``traceback`` is that of our own error."""

    why: str
    status: int = statuses.INCONCLUSIVE
    traceback: str = ""


Tell = Callable[[Early, Sequence[str]], None]
"""Writes to files, in place of a result, why there is none."""


def early_of(error: BaseException) -> Early:
    """Return what an error that ends a command means."""
    match error:
        case click.exceptions.Exit():
            return Early(f"the command ended with status {error.exit_code}", error.exit_code)
        case click.ClickException():
            return Early(error.message, error.exit_code)
        case KeyboardInterrupt() | click.Abort():
            return Early(INTERRUPTED)
        case BrokenPipeError() if is_closed(1):
            return Early("nobody reads the output any more")
        case _ if is_interruption(error):
            return Early(INTERRUPTED)
        case _ if is_short(error):
            return Early(of_the_host(error))
        case FileNotFoundError() if _is_nowhere():
            return Early("the host: the current folder has been removed")
    return Early("", statuses.INTERNAL_ERROR, "".join(traceback.format_exception(error)))


@contextmanager
def never_stale(files: Sequence[str], tell: Tell) -> Iterator[None]:
    """If the block fails, let ``tell`` write to those ``files`` that the block left unchanged.

    What ``tell`` cannot write is removed.
    What is not a regular file (a pipe, a device) is left alone, except standard output (``-``).
    """
    before = {file: _state(file) for file in files if _may_be_written(file)}
    try:
        yield
    except BaseException as error:
        early = early_of(error)
        left = [file for file, state in before.items() if _state(file) == state]
        if left and early.status not in (statuses.PASSED, statuses.USAGE):
            # The block's own error is the one to report.
            with _undisturbed():
                with suppress(Exception):
                    tell(early, left)
                # On a full disk nothing can be written, but removed.
                with suppress(OSError):
                    remove(early, [file for file in left if _state(file) == before[file]])
        raise


def remove(early: Early, files: Sequence[str]) -> None:
    """Remove files, whose absence then says that this run has no result: see `never_stale`."""
    for file in files:
        if file != STDOUT:
            Path(file).resolve().unlink(missing_ok=True)


def not_read(files: Sequence[str], parameters: Sequence[object]) -> list[str]:
    """Return the files except those that other parameters name, and so perhaps ask to read.

    Such a command is refused soon after; an interruption before that destroys nothing.
    """
    return [file for file in files if not any(_is_same(file, each) for each in parameters)]


def written_files(ctx: click.Context, names: Sequence[str]) -> list[str]:
    """Return the files that a command writes: the values of these parameters, unless it reads them.

    What other parameters name may be read.
    """
    given = [ctx.params.get(name) for name in names]
    others = [value for name, value in ctx.params.items() if name not in names]
    return not_read([str(file) for file in given if file is not None], others)


def note_printed() -> None:
    """Note that a whole result was printed to standard output."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[_PRINTED] = True


def is_closed(fd: int) -> bool:
    """Whether the reader of a pipe is gone."""
    there = select.poll()
    there.register(fd, 0)
    return bool(there.poll(0))


def _is_nowhere() -> bool:
    """Whether the current folder is gone, so that no relative path means anything."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _may_be_written(file: str) -> bool:
    with suppress(OSError, ValueError):
        return file == STDOUT or stat.S_ISREG(os.stat(file).st_mode)
    return True


def _state(file: str) -> object:
    """Return a value that changes when a file does."""
    if file == STDOUT:
        context = click.get_current_context(silent=True)
        return context is not None and context.meta.get(_PRINTED)
    with suppress(OSError, ValueError):
        found = os.stat(file)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _is_same(file: str, value: object) -> bool:
    if isinstance(value, tuple):
        return any(_is_same(file, each) for each in value)
    with suppress(OSError, ValueError):
        return isinstance(value, str | Path) and os.path.samefile(file, value)
    return False


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Delay further interruptions to the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        with suppress(KeyboardInterrupt):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
