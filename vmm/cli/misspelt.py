"""Misspelt commands are answered with the closest."""

import difflib
from collections.abc import Callable, Collection

import click

Resolved = tuple[str | None, click.Command | None, list[str]]


def resolved(
    resolve: Callable[[click.Context, list[str]], Resolved],
    ctx: click.Context,
    args: list[str],
    commands: Collection[str],
) -> Resolved:
    """Return what a group resolves; raise its UsageError with what is like a command of its own."""
    try:
        return resolve(ctx, args)
    except click.UsageError as error:
        close = difflib.get_close_matches(args[0], commands, n=3, cutoff=0.5)
        if not close or args[0] in commands:
            raise
        message = error.message.partition(" Did you mean")[0]
        raise click.UsageError(f"{message} The closest: {', '.join(close)}.", ctx) from None
