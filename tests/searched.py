"""Random scenarios that several tests look at: to make hundreds takes seconds."""

from functools import cache

import pytest

from tests.ideal import FEATURES
from vmm.catalogue import catalogue
from vmm.fuzz.generate.dice import seed_of
from vmm.fuzz.generate.mutate import can_be_mutated
from vmm.fuzz.generate.pools import with_odd_subject
from vmm.fuzz.generate.scenarios import generate
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.verdict.ideal import EVERYTHING

BASES = tuple(s for s in catalogue(FEATURES) if can_be_mutated(s, FEATURES))


@cache
def _made(seed: int, number: int, features: Features, mutates: bool) -> Scenario:
    return generate(seed_of(seed, number), features, BASES if mutates else ())


def some(count: int, features: Features = FEATURES) -> list[Scenario]:
    """Return random scenarios, mutations of curated ones among them."""
    return [_made(7, number, features, True) for number in range(count)]


def of_subject(subject: str, seed: int, count: int, features: Features) -> list[Scenario]:
    """Return scenarios about an odd subject, of which others hardly meet one."""
    always = "vmm.fuzz.generate.scenarios._with_odd_subject"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(always, lambda drawn, has, _: with_odd_subject(drawn, subject, has))
        return [generate(seed_of(seed, number), features) for number in range(count)]


def composed_from(number: int, features: Features) -> Scenario:
    """Return the scenario of that number of `composed`."""
    return _made(8, number, features, False)


def composed(count: int, features: Features = EVERYTHING) -> list[Scenario]:
    """Return scenarios none of which is a mutation of a curated one."""
    return [composed_from(number, features) for number in range(count)]
