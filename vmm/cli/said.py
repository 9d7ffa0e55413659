"""What is printed may go nowhere: a full disk, or a reader that is gone. Imports nothing heavy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from vmm.cli.errors import HostFailed


class OutputLost(HostFailed):
    """What is printed goes nowhere."""


@contextmanager
def taken() -> Iterator[None]:
    """Turn the failure of what is printed in the block into OutputLost."""
    try:
        yield
    except BrokenPipeError:
        raise OutputLost("nobody reads the output any more") from None
    except OSError as error:
        raise OutputLost(f"the output cannot be written: {error.strerror}") from None


def give_up_on(fd: int) -> None:
    """Let what Python still holds for a standard stream go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def say(line: str) -> None:
    """Print a line about ourselves on standard error; nothing happens where that is lost."""
    try:
        click.echo(f"vmm: {line}", err=True)
    except OSError:
        give_up_on(2)
