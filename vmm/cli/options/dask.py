"""``--dask``: in a module of its own, so that commands need not import the fleet."""

from collections.abc import Iterable, Iterator

import click
from click.core import ParameterSource

dask_option = click.option(
    "--dask",
    metavar="ADDRESS",
    help="Use the hosts of this Dask scheduler, such as tcp://HOST:8786.",
)


def not_with_dask(ctx: click.Context, names: Iterable[str]) -> None:
    """Raise click.UsageError if one of these parameters was given: hosts do not get them."""
    for option in _given(ctx, names, (ParameterSource.COMMANDLINE,)):
        if ctx.params[option.name or ""] not in (None, False):
            raise click.UsageError(f"--dask does not go with {_name(option)}")


def for_hosts(ctx: click.Context, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of these options that were given, as words for the command on each host."""
    words: list[str] = []
    for option in _given(ctx, names, (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)):
        value = ctx.params[option.name or ""]
        words += [_name(option)] if value is True else [_name(option), str(value)]
    return tuple(words)


def _given(
    ctx: click.Context, names: Iterable[str], sources: tuple[ParameterSource, ...]
) -> Iterator[click.Parameter]:
    options = {option.name: option for option in ctx.command.params}
    for name in names:
        if ctx.get_parameter_source(name) in sources:
            yield options[name]


def _name(option: click.Parameter) -> str:
    return next(each for each in option.opts if each.startswith("--"))
