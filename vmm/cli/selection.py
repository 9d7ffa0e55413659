"""Which curated scenarios a command is about."""

import difflib
import fnmatch
from collections.abc import Collection, Iterable

import click

from vmm.cli.host import USUAL
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario

SLOW = "slow"


def curated(features: Features = USUAL) -> tuple[Scenario, ...]:
    """Return the curated scenarios for a kernel; by default for one of the usual kind."""
    from vmm.catalogue import catalogue

    return catalogue(features)


def complete_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of scenarios that begin like this, for a shell's completion."""
    return [each.name for each in curated() if each.name.startswith(incomplete)]


def complete_tags(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the tags that begin like this, for a shell's completion."""
    tags = {tag for each in curated() for tag in each.tags}
    return sorted(tag for tag in tags if tag.startswith(incomplete))


def select(
    scenarios: Collection[Scenario],
    patterns: Iterable[str],
    tag: str | None,
    everything: bool = False,
) -> tuple[Scenario, ...]:
    """Return the scenarios whose name matches any pattern (all if none) and that have the tag.

    Those that are tagged as slow take a pattern that names them, a tag, or ``everything``.

    Raises click.UsageError for a pattern or a tag that matches nothing.
    """
    patterns = tuple(patterns)
    names = [scenario.name for scenario in scenarios]
    chosen: set[str] = set()
    if not patterns:
        slow = not everything and tag is None
        chosen = {s.name for s in scenarios if not (slow and SLOW in s.tags)}
    for pattern in patterns:
        matching = fnmatch.filter(names, pattern)
        if not matching:
            raise click.UsageError(f"no scenario matches {pattern!r}{_closest(pattern, names)}")
        chosen.update(matching)
    if tag is not None:
        tags = {each for scenario in scenarios for each in scenario.tags}
        if tag not in tags:
            raise click.UsageError(f"no scenario has the tag {tag!r}{_closest(tag, tags)}")
    found = tuple(s for s in scenarios if s.name in chosen and (tag is None or tag in s.tags))
    if not found:
        raise click.UsageError(f"no scenario that matches {' '.join(patterns)} has the tag {tag!r}")
    return found


def named(scenarios: Collection[Scenario], name: str) -> Scenario:
    """Return the scenario of this name. Raises click.UsageError if there is none."""
    for scenario in scenarios:
        if scenario.name == name:
            return scenario
    names = [scenario.name for scenario in scenarios]
    raise click.UsageError(f"no scenario is named {name!r}{_closest(name, names)}")


def _closest(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.strip("*?"), list(words), n=3, cutoff=0.5)
    return f"; the closest: {', '.join(close)}" if close else "; `vmm check --list` names them all"
