"""Expected errors: one line on standard error, and an exit status."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from vmm.cli.output.width import width_of, wrapped
from vmm.lab.log import SIGN
from vmm.scenario.endings import HOST_SHORT, of_the_host
from vmm.scenario.shown import shown
from vmm.verdict import statuses

_MOST = 1000
_OF_THE_HOST = HOST_SHORT - {errno.EROFS}


class Failure(click.ClickException):
    """Prints ``vmm: MESSAGE``; subclasses define the exit status."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        width = width_of(2) if file is None else None
        for line in f"vmm: {self.message}".split("\n"):
            click.echo(wrapped(line, width), file=file, err=file is None)


class Unusable(Failure):
    """A file cannot be used. The message, which may quote the file, is shown on one line."""

    exit_code = statuses.USAGE

    def __init__(self, message: str) -> None:
        """Take the message."""
        super().__init__(shown(message, _MOST))


class Misused(Failure):
    """Arguments cannot be used: the line names the command whose help to read."""

    exit_code = statuses.USAGE

    def __init__(self, error: click.UsageError) -> None:
        """Take what click says of them."""
        path = error.ctx.command_path if error.ctx else "vmm"
        message = " ".join(error.format_message().split())  # Click may use several lines.
        super().__init__(f"{shown(message, _MOST)} ({path} --help says more)")


@contextmanager
def in_one_line() -> Iterator[None]:
    """Report a click.UsageError in one line, except the help of a group without a command."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        raise Misused(error) from None


class NothingRan(Failure):
    """No scenario could run."""

    exit_code = statuses.NOTHING_RAN


class TooFewRan(Failure):
    """Fewer scenarios ran than --require-run asks for."""

    exit_code = statuses.TOO_FEW_RAN


class HostFailed(Failure):
    """The host ran out of something, or the output cannot be written."""

    exit_code = statuses.INCONCLUSIVE


class Ended(Failure):
    """A command ends with a ``status`` that depends on the reason."""

    def __init__(self, message: str, status: int) -> None:
        """Take the message, and the status."""
        super().__init__(message)
        self.status = status

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # click looks at it on the instance.
        return self.status


class InProbing(Ended):
    """The kernel could not be probed; the status is that of the verdict on this."""


@contextmanager
def usable(path: object) -> Iterator[None]:
    """Turn an OSError about a file that the user named into Unusable, or HostFailed if full.

    Use it before anything is executed, and `kept` for what is written afterwards.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _OF_THE_HOST:
            raise lost(path, error) from None
        raise Unusable(f"{path}: {error.strerror}{_in_the_lab(error)}") from None


@contextmanager
def kept(path: object) -> Iterator[None]:
    """Turn any OSError about a file, which was usable when the command began, into HostFailed."""
    try:
        yield
    except OSError as error:
        raise lost(path, error) from None


def lost(path: object, error: OSError) -> HostFailed:
    """Return what to raise for a file that the host did not take."""
    error.filename, error.filename2 = str(path), None
    return HostFailed(shown(of_the_host(error) + _in_the_lab(error), _MOST))


def _in_the_lab(error: OSError) -> str:
    """Say where a machine of the lab may write, if this is one and it may not write elsewhere."""
    if error.errno != errno.EROFS or SIGN not in os.environ:
        return ""
    return f": the lab's machine writes to the current folder only: {os.getcwd()}"
