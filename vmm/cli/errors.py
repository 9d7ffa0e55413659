"""Expected errors: one line on standard error, and an exit status."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from vmm.cli.width import width_of, wrapped
from vmm.scenario.shown import shown
from vmm.verdict import statuses

_MOST = 1000


class Failure(click.ClickException):
    """Prints ``vmm: MESSAGE``; subclasses say with which exit status."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        width = width_of(2) if file is None else None
        for line in f"vmm: {self.message}".split("\n"):
            click.echo(wrapped(line, width), file=file, err=file is None)


class Unusable(Failure):
    """A file that cannot be used. The message may quote the file: it is shown on one line."""

    exit_code = statuses.USAGE

    def __init__(self, message: str) -> None:
        """Take the message."""
        super().__init__(shown(message, _MOST))


class NothingRan(Failure):
    """No scenario could run."""

    exit_code = statuses.NOTHING_RAN


class TooFewRan(Failure):
    """Fewer scenarios ran than --require-run asks for."""

    exit_code = statuses.TOO_FEW_RAN


class HostFailed(Failure):
    """The host has run out of something, or nobody takes what is printed."""

    exit_code = statuses.INCONCLUSIVE


class InProbing(Failure):
    """The kernel could not be asked what it can do: ``exit_code`` is its verdict's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # click looks at it on the instance.
        return self.status


@contextmanager
def usable(path: object) -> Iterator[None]:
    """Turn an OSError about a file that the user named into Unusable."""
    try:
        yield
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
