"""Which curated scenarios are meant: by pattern, tag and exclusion; slow ones where asked for."""

import pytest

from tests.played import make
from vmm.scenario.selection import Selection, SelectionError

UP, DOWN = make("move-up", "move"), make("move-down", "move", "bug")
RACING = make("racing-move", "racing", "slow")
EVERY = (UP, DOWN, RACING)


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (Selection(), "move-up move-down"),
        (Selection(everything=True, shard=(1, 2)), "move-up racing-move"),
        (Selection(everything=True, shard=(2, 2)), "move-down"),
        (Selection(everything=True), "move-up move-down racing-move"),
        (Selection(tags=("racing",)), "racing-move"),
        (Selection(tags=("racing", "bug")), "move-down racing-move"),
        (Selection(("*",)), "move-up move-down racing-move"),
        (Selection(("racing-*", "move-up")), "move-up racing-move"),
        (Selection(("move-*",), tags=("bug",)), "move-down"),
        (Selection(exclude=("*-up",)), "move-down"),
        (Selection(("move-*",), exclude=("move-down", "racing-*")), "move-up"),
    ],
)
def test_what_is_meant(selection: Selection, names: str) -> None:
    assert " ".join(each.name for each in selection.among(EVERY)) == names


@pytest.mark.parametrize(
    ("selection", "error"),
    [
        (Selection(("mvoe-up",)), "no scenario matches 'mvoe-up'; the closest: move-up"),
        (Selection(exclude=("raicng-*",)), "no scenario matches 'raicng-*'; the closest: racing"),
        (Selection(tags=("racng",)), "no scenario has the tag 'racng'; the closest: racing"),
        (Selection(tags=("zzz",)), "'zzz'; `vmm check --list` names them all"),
        (Selection(("move-up",), tags=("bug",)), "no scenario is left of move-up with the tag bug"),
        (Selection(shard=(3, 3)), "no scenario is left of all in shard 3 of 3"),
        (Selection(exclude=("*",)), "no scenario is left of all without *"),
    ],
)
def test_what_matches_nothing_is_said_with_the_closest(selection: Selection, error: str) -> None:
    with pytest.raises(SelectionError) as raised:
        selection.among(EVERY)
    assert error in str(raised.value)
