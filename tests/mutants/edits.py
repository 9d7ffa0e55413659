"""Puts bugs into C sources: each is an edit, and works only where `kvm_mutant` has its number.

So one build holds them all, and a parameter of the module says which is at work; with 0 none is.

An edit names a file, a function, a piece of it and what stands in its place. White space does not
count, and comments are not looked at. How the two are put side by side follows from the piece:

- what ends with `;` is a statement, or several: `if (MUTANT) { new } else { old }`;
- else it is an expression: `(MUTANT ? (new) : (old))`;
- where the new text holds the word MUTANT itself, it is put there as it is.

In the new text, `$` stands for the old one.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SWITCH = "kvm_mutant"
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_TOKEN = re.compile(r"\w+|\S")
_MUTANT = re.compile(r"\bMUTANT\b")


class EditError(ValueError):
    """An edit that does not apply: one line, with the file and the function."""


@dataclass(frozen=True, slots=True)
class Edit:
    """``nth`` counts the places of the piece in the function from 1; 0: it must be there once."""

    file: str
    function: str
    old: str
    new: str
    nth: int = 0

    def __str__(self) -> str:
        return f"{self.file}: {self.function}(): {' '.join(self.old.split())!r}"


@dataclass(frozen=True, slots=True)
class _Place:
    start: int
    end: int
    number: int
    edit: Edit


def edited(source: str, edits: Sequence[tuple[int, Edit]]) -> str:
    """Return a file with all edits in it; each has its mutant's number. Raises EditError."""
    plain = without_comments(source)
    places = [_place(plain, number, edit) for number, edit in edits]
    return _rendered(source, 0, len(source), _outermost_first(places))


def without_comments(source: str) -> str:
    """Return a source with blanks for comments: every place stays where it is."""
    return _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), source)


def _outermost_first(places: Iterable[_Place]) -> list[_Place]:
    return sorted(places, key=lambda place: (place.start, -place.end, place.number))


def _rendered(source: str, start: int, end: int, places: Sequence[_Place]) -> str:
    """Return a piece of the source, with the edits in it; one may lie within another."""
    parts: list[str] = []
    at, left = start, list(places)
    while left:
        place = left.pop(0)
        inner = [each for each in left if each.start < place.end]
        left = [each for each in left if each.start >= place.end]
        for each in inner:
            if each.end > place.end:
                raise EditError(f"{each.edit} overlaps {place.edit}")
        if inner and _MUTANT.search(place.edit.new) and "$" not in place.edit.new:
            raise EditError(f"{place.edit}: {inner[0].edit} lies within it: say $ in the new text")
        parts.append(source[at : place.start])
        old = _rendered(source, place.start, place.end, inner)
        parts.append(_side_by_side(place.number, place.edit, old))
        at = place.end
    return "".join([*parts, source[at:end]])


def _side_by_side(number: int, edit: Edit, old: str) -> str:
    mutant = f"({SWITCH} == {number})"
    new = edit.new.replace("$", old)
    if _MUTANT.search(edit.new):
        return _MUTANT.sub(mutant, new)
    if edit.old.rstrip().endswith(";"):
        return f"{{ if {mutant} {{ {new} }} else {{ {old} }} }}"
    return f"({mutant} ? ({new}) : ({old}))"


def _place(plain: str, number: int, edit: Edit) -> _Place:
    start, end = _extent(plain, edit)
    tokens = _TOKEN.findall(edit.old)
    if not tokens:
        raise EditError(f"{edit.file}: {edit.function}(): nothing to replace")
    found = list(_pattern(tokens).finditer(plain, start, end))
    if not found:
        raise EditError(f"{edit}: it is not there")
    if edit.nth > len(found):
        raise EditError(f"{edit}: it is there {len(found)} times, not {edit.nth}")
    if not edit.nth and len(found) > 1:
        raise EditError(f"{edit}: it is there {len(found)} times: say which (nth)")
    match = found[max(edit.nth - 1, 0)]
    return _Place(match.start(), match.end(), number, edit)


def _pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    parts = [re.escape(tokens[0])]
    for before, token in pairwise(tokens):
        both_words = re.match(r"\w", before) and re.match(r"\w", token)
        parts += [r"\s+" if both_words else r"\s*", re.escape(token)]
    first = r"\b" if re.match(r"\w", tokens[0]) else ""
    last = r"\b" if re.match(r"\w", tokens[-1]) else ""
    return re.compile(first + "".join(parts) + last)


def _extent(plain: str, edit: Edit) -> tuple[int, int]:
    """Return where a function's body lies, or a macro's text."""
    name = re.escape(edit.function)
    if macro := re.search(rf"^#define {name}\b(?:[^\n]*\\\n)*[^\n]*\n", plain, re.MULTILINE):
        return macro.span()
    found = [
        brace
        for match in re.finditer(rf"^(?=[^\s#])[^\n;{{}}=]*?(?<!\w){name}\(", plain, re.MULTILINE)
        if (brace := _opening(plain, match.end() - 1)) is not None
    ]
    if len(found) != 1:
        times = f"defined {len(found)} times" if found else "not defined there"
        raise EditError(f"{edit.file}: {edit.function}() is {times}")
    end = plain.find("\n}", found[0])
    if end < 0:
        raise EditError(f"{edit.file}: {edit.function}() has no end")
    return found[0], end


def _opening(plain: str, at: int) -> int | None:
    """Return the place of the brace that follows the parentheses at a place, None without one."""
    depth = 0
    for place in range(at, len(plain)):
        depth += {"(": 1, ")": -1}.get(plain[place], 0)
        if not depth:
            rest = plain[place + 1 :].lstrip()
            return len(plain) - len(rest) if rest.startswith("{") else None
    return None
