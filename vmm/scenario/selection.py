"""Selects curated scenarios by name and tag, with exclusions, with or without slow ones.

The command line, the library and the pytest plugin all select here.
"""

import difflib
import fnmatch
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from vmm.scenario.operations import Scenario

SLOW = "slow"


class SelectionError(ValueError):
    """A pattern or a tag that matches nothing; the text is one line, with the closest matches."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user asked for.

    A scenario is selected if its name matches any of ``patterns`` (or there are none), if it has
    any of ``tags`` (or there are none), and if its name matches none of ``exclude``. Slow ones need
    a pattern, a tag or ``everything``. ``shard`` (k, n) keeps every n-th of these, from the k-th
    on: together the shards are all.
    """

    patterns: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    everything: bool = False
    shard: tuple[int, int] = (1, 1)

    def among(self, scenarios: Collection[Scenario]) -> tuple[Scenario, ...]:
        """Return the selected scenarios, in their order.

        Raises SelectionError if a pattern or a tag matches nothing, and if nothing is left.
        """
        names = [scenario.name for scenario in scenarios]
        excluded = matching(self.exclude, names)
        chosen = (matching(self.patterns, names) if self.patterns else set(names)) - excluded
        self._check_tags(scenarios)
        found = tuple(
            each
            for each in scenarios
            if each.name in chosen
            and (not self.tags or set(self.tags).intersection(each.tags))
            and not (self.leaves_slow_out and SLOW in each.tags)
        )
        which, of = self.shard
        found = found[which - 1 :: of]
        if not found:
            raise SelectionError(f"no scenario is left of {self._in_words()}")
        return found

    @property
    def leaves_slow_out(self) -> bool:
        """Whether scenarios tagged as slow are not selected."""
        return not (self.patterns or self.tags or self.everything)

    def _check_tags(self, scenarios: Collection[Scenario]) -> None:
        known = {tag for scenario in scenarios for tag in scenario.tags}
        for tag in self.tags:
            if tag not in known:
                raise SelectionError(f"no scenario has the tag {tag!r}{closest(tag, known)}")

    def _in_words(self) -> str:
        words = [" ".join(self.patterns) or "all"]
        words += [f"with the tag {' or '.join(self.tags)}"] if self.tags else []
        words += [f"without {' '.join(self.exclude)}"] if self.exclude else []
        words += [f"in shard {self.shard[0]} of {self.shard[1]}"] if self.shard != (1, 1) else []
        return " ".join(words)


def matching(patterns: Iterable[str], names: Collection[str]) -> set[str]:
    """Return the names that match any pattern. Raises SelectionError if one matches nothing."""
    found: set[str] = set()
    for pattern in patterns:
        those = fnmatch.filter(names, pattern)
        if not those:
            raise SelectionError(f"no scenario matches {pattern!r}{closest(pattern, names)}")
        found.update(those)
    return found


def named(scenarios: Collection[Scenario], name: str) -> Scenario:
    """Return the scenario of this name. Raises SelectionError if there is none."""
    for scenario in scenarios:
        if scenario.name == name:
            return scenario
    names = [scenario.name for scenario in scenarios]
    raise SelectionError(f"no scenario is named {name!r}{closest(name, names)}")


def closest(word: str, words: Iterable[str]) -> str:
    """Return the end of a sentence: the words closest to a misspelt one, or where to find them."""
    close = difflib.get_close_matches(word.strip("*?"), list(words), n=3, cutoff=0.5)
    return f"; the closest: {', '.join(close)}" if close else "; `vmm check --list` names them all"
