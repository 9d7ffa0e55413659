"""Printing that survives a full disk or a reader that is gone. Imports nothing heavy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from vmm.cli.output.errors import HostFailed
from vmm.cli.output.width import width_of, wrapped
from vmm.scenario.endings import HOST, what_is_short


class OutputLost(HostFailed):
    """Output cannot be written."""


@contextmanager
def output_checked() -> Iterator[None]:
    """Turn a failure to write output in the block into OutputLost."""
    try:
        yield
    except BrokenPipeError:
        raise OutputLost("nobody reads the output any more") from None
    except OSError as error:
        raise OutputLost(f"{HOST}the output cannot be written: {what_is_short(error)}") from None


def give_up_on(fd: int) -> None:
    """Discard what Python still buffers for a standard stream."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def tell(line: str, err: bool = False) -> None:
    """Print a line for people, wrapped at the terminal's width.

    Raises OutputLost; OSError if standard error cannot be written.
    """
    text = wrapped(line, width_of(2 if err else 1))
    if err:
        click.echo(text, err=True)
    else:
        put(text + "\n")


def put(text: str) -> None:
    """Print a document to standard output. Raises OutputLost."""
    with output_checked():
        click.echo(text, nl=False)


def say(line: str) -> None:
    """Print a line about this program on standard error; a failure is ignored."""
    try:
        for number, each in enumerate(line.split("\n")):
            tell(each if number else f"vmm: {each}", err=True)
    except OSError:
        give_up_on(2)
