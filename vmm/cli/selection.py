"""Which curated scenarios a command is about: the options, and what a shell completes."""

import fnmatch
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click

from vmm.cli.host import USUAL
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.scenario.selection import Selection, SelectionError, named as _named


def curated(features: Features = USUAL) -> tuple[Scenario, ...]:
    """Return the curated scenarios for a kernel; by default for one of the usual kind."""
    from vmm.catalogue import catalogue

    return catalogue(features)


def selected(features: Features, selection: Selection) -> tuple[Scenario, ...]:
    """Return those of a kernel's curated scenarios that are meant. Raises click.UsageError."""
    from vmm.catalogue import LARGE_NAMES, catalogue

    small = catalogue(features, with_large=False)
    patterns = (*selection.patterns, *selection.exclude)
    names = [scenario.name for scenario in small]
    # A pattern that matches nothing is told with all names.
    with_large = (
        selection.everything
        or bool(selection.tags)
        or any(fnmatch.filter(LARGE_NAMES, each) for each in patterns)
        or not all(fnmatch.filter(names, each) for each in patterns)
    )
    return select(catalogue(features) if with_large else small, selection)


def complete_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of scenarios that begin like this, for a shell's completion."""
    return [each.name for each in curated() if each.name.startswith(incomplete)]


def complete_tags(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the tags that begin like this, for a shell's completion."""
    tags = {tag for each in curated() for tag in each.tags}
    return sorted(tag for tag in tags if tag.startswith(incomplete))


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what chooses scenarios; it gets ``selection``."""

    @click.argument(
        "patterns", nargs=-1, metavar="[NAME-PATTERN]...", shell_complete=complete_names
    )
    @click.option(
        "--tag",
        "tags",
        multiple=True,
        metavar="TAG",
        help="Only scenarios with this tag (again: or that one).",
        shell_complete=complete_tags,
    )
    @click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Not those whose name matches (again: nor those).",
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
    """Return the scenarios that are meant. Raises click.UsageError."""
    with _as_usage():
        return selection.among(scenarios)


def named(scenarios: Collection[Scenario], name: str) -> Scenario:
    """Return the scenario of this name. Raises click.UsageError if there is none."""
    with _as_usage():
        return _named(scenarios, name)


@contextmanager
def _as_usage() -> Iterator[None]:
    try:
        yield
    except SelectionError as error:
        raise click.UsageError(str(error)) from None
