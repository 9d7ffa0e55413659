"""What the default tier leaves to ``--all`` exists, and is not what alone notices a known fault."""

import json
from pathlib import Path

import pytest

from vmm.catalogue import catalogue
from vmm.catalogue.tiers import LEFT_TO_ALL
from vmm.scenario.selection import SLOW
from vmm.verdict.ideal import EVERYTHING

_CAUGHT = Path(__file__).parents[2] / "lab" / "caught.json"
_TAGS = {scenario.name: scenario.tags for scenario in catalogue(EVERYTHING)}


@pytest.mark.parametrize("name", sorted(LEFT_TO_ALL))
def test_what_is_left_to_all_is_a_scenario_that_is_tagged_once(name: str) -> None:
    assert _TAGS[name].count(SLOW) == 1


def test_no_known_fault_is_noticed_only_by_what_is_left_to_all() -> None:
    caught: dict[str, list[str]] = json.loads(_CAUGHT.read_text())
    lost = {
        fault
        for fault, names in caught.items()
        if LEFT_TO_ALL.intersection(names) and all(SLOW in _TAGS.get(name, ()) for name in names)
    }
    assert not lost
