"""Which curated scenarios a command is for: the options, and shell completion."""

import fnmatch
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click
from click.shell_completion import CompletionItem

from vmm.cli.running.host import USUAL
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.scenario.selection import Selection, SelectionError, named as _named


def curated(features: Features = USUAL, *, with_large: bool = True) -> tuple[Scenario, ...]:
    """Return the curated scenarios for a kernel, by default one with the usual features."""
    from vmm.catalogue import catalogue

    return catalogue(features, with_large)


def selected(features: Features, selection: Selection) -> tuple[Scenario, ...]:
    """Return the selected ones of a kernel's curated scenarios. Raises click.UsageError."""
    from vmm.catalogue import LARGE_NAMES, catalogue

    small = catalogue(features, with_large=False)
    patterns = (*selection.patterns, *selection.exclude)
    names = [scenario.name for scenario in small]
    # The error for a pattern that matches nothing names all scenarios.
    with_large = (
        selection.everything
        or bool(selection.tags)
        or any(fnmatch.filter(LARGE_NAMES, each) for each in patterns)
        or not all(fnmatch.filter(names, each) for each in patterns)
    )
    return select(catalogue(features) if with_large else small, selection)


def complete_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the scenario names with this prefix, for shell completion."""
    return [each.name for each in curated() if each.name.startswith(incomplete)]


def complete_names_or_files(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the scenario names with this prefix; if there are none, shells complete files."""
    names = complete_names(ctx, parameter, incomplete)
    return [CompletionItem(each) for each in names] or [CompletionItem(incomplete, type="file")]


def complete_tags(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the tags with this prefix, for shell completion."""
    tags = {tag for each in curated() for tag in each.tags}
    return sorted(tag for tag in tags if tag.startswith(incomplete))


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select scenarios to a command, which gets ``selection``."""

    @click.argument(
        "patterns", nargs=-1, metavar="[NAME-PATTERN]...", shell_complete=complete_names
    )
    @click.option(
        "--tag",
        "tags",
        multiple=True,
        metavar="TAG",
        help="Only scenarios with this tag (may be repeated).",
        shell_complete=complete_tags,
    )
    @click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Leave out those whose name matches (may be repeated).",
        shell_complete=complete_names,
    )
    @click.option("--all", "everything", is_flag=True, help="Slow scenarios, too.")
    @wraps(command)
    def chosen(
        *args: Any,
        patterns: tuple[str, ...],
        tags: tuple[str, ...],
        exclude: tuple[str, ...],
        everything: bool,
        **options: Any,
    ) -> None:
        selection = Selection(patterns, tags, exclude, everything)
        command(*args, selection=selection, **options)

    return chosen


def select(scenarios: Collection[Scenario], selection: Selection) -> tuple[Scenario, ...]:
    """Return the selected scenarios. Raises click.UsageError."""
    with _as_usage():
        return selection.among(scenarios)


def named(scenarios: Collection[Scenario], name: str) -> Scenario:
    """Return the scenario with this name. Raises click.UsageError if there is none."""
    with _as_usage():
        return _named(scenarios, name)


@contextmanager
def _as_usage() -> Iterator[None]:
    try:
        yield
    except SelectionError as error:
        raise click.UsageError(str(error)) from None
