"""Reads the table of docs/mutants.md: where a machine has no result of its own, that stands."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from tests.mutants.found import Found
from tests.mutants.rows import Mutant

_LOG = "the kernel's log: "
_WHITE = re.compile(r"(kernel-\S+) in `(.+)`")
_SURVIVED = "**survived**"
_LOOKED = re.compile(r"- (.+): after (\d+) s")


class Standing(NamedTuple):
    """What became of a bug from outside, and with the white box: None where nothing stands."""

    black: Found | None
    white: Found | None


def standing(lines: Sequence[str]) -> Mapping[str, Standing]:
    """Return what stands in a table's lines, by the words that its first column has for a bug."""
    return dict(_rows(lines))


def named(row: Mutant) -> str:
    """Return the first column of a bug."""
    undoes = f" ({row.undoes} undone)" if row.undoes else ""
    where = "".join(f", {each}" for each in (*(["npt=0"] if not row.npt else ()), *row.params))
    return f"{row.subject}{undoes}{where}"


def _rows(lines: Sequence[str]) -> Iterator[tuple[str, Standing]]:
    looked = {found[1]: float(found[2]) for line in lines if (found := _LOOKED.fullmatch(line))}
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split(" |")]
        if line.startswith("| ") and len(cells) == 5 and cells[0] != "bug":
            name, by, at, after, inside = cells
            if by == _SURVIVED:
                black: Found | None = Found(name, "survived", seconds=looked.get(name, 0))
            else:
                black = _black(name, by, at, after)
            yield name, Standing(black, _white(name, inside))


def _black(name: str, by: str, at: str, after: str) -> Found | None:
    if not after:
        return None
    seconds = float(after.removesuffix(" s"))
    if by == "`vmm fuzz`":
        return Found(name, "differs", step="fuzz:", rule=at, seconds=seconds)
    scenario = by.strip("`") if by.startswith("`") else ""
    if at == "it hangs":
        return Found(name, "hung", scenario, seconds=seconds)
    if at.startswith(_LOG):
        return Found(name, "complained", scenario, step=at.removeprefix(_LOG), seconds=seconds)
    return Found(name, "differs", scenario, rule=at, seconds=seconds)


def _white(name: str, inside: str) -> Found | None:
    if inside == "nothing more":
        return Found(name, "survived", white=True)
    if seen := _WHITE.fullmatch(inside):
        rule, scenario = seen.groups()
        return Found(name, "differs", scenario, rule=rule, white=True)
    return None
