"""Which scenarios a command is about: slow ones only where they are asked for."""

import msgspec
import pytest

from tests.played import make
from vmm.cli.selection import select

QUICK, SLOW = make("move-up", "move"), make("racing-move", "racing", "slow")
BOTH = (QUICK, SLOW)


@pytest.mark.parametrize(
    ("patterns", "tag", "everything", "expected"),
    [
        ((), None, False, (QUICK,)),
        ((), None, True, BOTH),
        ((), "racing", False, (SLOW,)),
        (("*",), None, False, BOTH),
        (("racing-*",), None, False, (SLOW,)),
    ],
)
def test_slow_scenarios_take_a_pattern_a_tag_or_all(
    patterns: tuple[str, ...],
    tag: str | None,
    everything: bool,
    expected: tuple[msgspec.Struct, ...],
) -> None:
    assert select(BOTH, patterns, tag, everything) == expected
