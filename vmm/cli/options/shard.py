"""``--shard``: run one part of the work, on one of several machines."""

from collections.abc import Callable

import click

_MOST_DIGITS = 40
"""Python refuses to read numbers of thousands of digits."""


def _shard(ctx: click.Context, option: click.Parameter, value: str) -> tuple[int, int]:
    index, slash, count = value.partition("/")
    is_short = slash and len(value) < _MOST_DIGITS
    if is_short and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return int(index), int(count)
    raise click.BadParameter("I/N is needed, with I from 1 to N, such as 3/16")


def shard_option(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option; its help says that ``what`` is split. A command gets ``shard``."""
    help_text = f"One part of N, of {what}."
    return click.option("--shard", default="1/1", callback=_shard, metavar="I/N", help=help_text)
