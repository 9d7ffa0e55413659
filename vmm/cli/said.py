"""What is printed may go nowhere: a full disk, or a reader that is gone. Imports nothing heavy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from vmm.cli.errors import HostFailed
from vmm.cli.width import width_of, wrapped
from vmm.scenario.endings import what_is_short


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
        raise OutputLost(f"the output cannot be written: {what_is_short(error)}") from None


def give_up_on(fd: int) -> None:
    """Let what Python still holds for a standard stream go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def tell(line: str, err: bool = False) -> None:
    """Print a line for people, broken where it is wider than what they look at.

    Raises OutputLost; OSError where standard error goes nowhere.
    """
    text = wrapped(line, width_of(2 if err else 1))
    if err:
        click.echo(text, err=True)
    else:
        put(text + "\n")


def put(text: str) -> None:
    """Print a document to standard output. Raises OutputLost."""
    with taken():
        click.echo(text, nl=False)


def say(line: str) -> None:
    """Print a line about ourselves on standard error; nothing happens where that is lost."""
    try:
        for number, each in enumerate(line.split("\n")):
            tell(each if number else f"vmm: {each}", err=True)
    except OSError:
        give_up_on(2)
