"""The table of mutants: what counts as noticed, and what is said of the others."""

from tests.mutants.found import Found
from tests.mutants.rows import Change, Mutant
from tests.mutants.table import summary

_EDIT = (Change("a.c", "f", "a", "b"),)


def _row(name: str, equivalent: str = "", survives: str = "") -> Mutant:
    return Mutant(name, name, _EDIT, equivalent=equivalent, survives=survives)


def test_only_what_is_noticed_counts_and_the_rest_is_named_with_why() -> None:
    rows = (
        _row("seen"),
        _row("same", equivalent="it does the same"),
        _row("inside"),
        _row("rare", survives="it takes hours"),
        _row("later"),
        _row("lost"),
        _row("slow"),
    )
    seen = Found("seen", "complained", "move-up", seconds=3)
    survived = Found("lost", "survived", seconds=30)
    slow = Found("slow", "hung", "move-up", seconds=60, control="hung")
    black = (seen, None, survived, survived, None, survived, slow)
    inside = Found("inside", "differs", "move-up", rule="kernel-trees")
    outside = Found("lost", "differs", "move-up", rule="reach")
    white = (None, None, inside, None, None, outside, None)
    text = "\n".join(summary(rows, black, white))
    assert "1 cannot be noticed. Of the other 6, 2 were noticed (33.3 %)" in text
    assert "1 from outside, and 1 by the white box alone" in text
    assert text.endswith(
        "- rare: it takes hours\n- later: it was not looked for\n"
        "- lost: after 30 s\n- slow: after 60 s"
    )


def test_a_kernel_that_nothing_was_looked_for_on_has_no_share() -> None:
    assert "Of the other 1, 0 were noticed (0.0 %)" in "".join(
        summary([_row("one")], [None], [None])
    )
