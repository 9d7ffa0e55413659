"""Expected errors: one line on standard error, and an exit status."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from vmm.scenario.shown import shown

_MOST = 1000


class Failure(click.ClickException):
    """Prints ``vmm: MESSAGE``; subclasses say with which exit status."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"vmm: {self.message}", file=file, err=file is None)


class Unusable(Failure):
    """A file that cannot be used. The message may quote the file: it is shown on one line."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        """Take the message."""
        super().__init__(shown(message, _MOST))


class NothingRan(Failure):
    """No scenario could run."""

    exit_code = 4


class NothingRanAsRequired(Failure):
    """No scenario could run, though --require-run was given."""

    exit_code = 1


@contextmanager
def usable(path: object) -> Iterator[None]:
    """Turn an OSError about a file that the user named into Unusable."""
    try:
        yield
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
