"""Text of a stranger is shown on one line, without control, and cut."""

import unicodedata

import pytest
from hypothesis import given, strategies as st

from vmm.scenario.shown import is_plain, shown


@given(st.text(st.characters(exclude_categories=())), st.integers(10, 300))
def test_whatever_the_text_it_is_one_printable_line(text: str, most: int) -> None:
    result = shown(text, most)
    assert len(result) <= most
    assert all(unicodedata.category(c)[0] != "C" and c not in "\n\u2028\u2029" for c in result)
    result.encode()


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("Grüße", "Grüße"),
        ("a\nb", r"a\nb"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b2J", r"\x9b2J"),
        ("a\u202eb", r"a\u202eb"),
        ("\ud800", r"\ud800"),
        ("\u2028", r"\u2028"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, result: str) -> None:
    assert shown(text) == result


def test_long_text_is_cut() -> None:
    assert shown("x" * 10, 10) == "x" * 10
    assert shown("x" * 11, 10) == "x" * 7 + "..."
    assert shown("\n" * 11, 10) == r"\n\n\n" + "\\..."


def test_plain_text_is_shown_as_it_is() -> None:
    assert is_plain("x", 1)
    assert not is_plain("", 1)
    assert not is_plain("xy", 1)
    assert not is_plain("\n", 1)
