"""The table of docs/mutants.md, made from the results."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median

from tests.mutants import results
from tests.mutants.found import Found
from tests.mutants.rows import Mutant, mutants, versions
from tests.mutants.standing import Standing, named, standing

DOCUMENT = Path(__file__).parents[2] / "docs" / "mutants.md"
_FINDING = re.compile(r"^fuzz: .*/(\S+)-[0-9a-f]{8}\b")
"""What kind of difference a fuzzer found, in the name of its folder."""

BEGIN, END = "<!-- made by scripts/mutants --table: begin -->", "<!-- end -->"


def write() -> None:
    """Put the tables into the document, in the place of those that are there."""
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    tables, _, after = rest.partition(END)
    parts = [part for version in versions() for part in of_version(version, tables)]
    DOCUMENT.write_text("\n".join([f"{before}{BEGIN}", *parts, f"{END}{after}"]))


def of_version(version: str, tables: str = "") -> Iterator[str]:
    """Yield the lines of one kernel's table; what this machine did not look for stands there."""
    rows, known = mutants(version), results.read(version)
    _, _, rest = tables.partition(_title(version))
    before = standing(rest.partition("\n### ")[0].splitlines())
    stood = [before.get(named(row), Standing(None, None)) for row in rows]
    black = [
        known.get(results.key(row, white=False), old.black)
        for row, old in zip(rows, stood, strict=True)
    ]
    white = [
        known.get(results.key(row, white=True), old.white)
        for row, old in zip(rows, stood, strict=True)
    ]
    yield _title(version)
    yield from summary(rows, black, white)
    yield "\n| bug | noticed by | at | after | white box |"
    yield "|---|---|---|---|---|"
    for row, one, other in zip(rows, black, white, strict=True):
        yield f"| {named(row)} | {_by(row, one)} | {_at(one)} | {_after(one)} | {_inside(other)} |"


def _title(version: str) -> str:
    return f"\n### Linux {version}\n"


def summary(
    rows: Sequence[Mutant], black: Sequence[Found | None], white: Sequence[Found | None]
) -> Iterator[str]:
    """Yield what it comes to, and every bug that nothing has noticed, with why."""
    real = [
        (row, one, other)
        for row, one, other in zip(rows, black, white, strict=True)
        if not row.equivalent
    ]
    noticed = [one for _, one, _ in real if one is not None and one.is_noticed]
    missed = [each for each in real if each[1] is None or not each[1].is_noticed]
    only_white = [row for row, _, other in missed if _is_seen(other)]
    left = [(row, one) for row, one, other in missed if not _is_seen(other)]
    same = len(rows) - len(real)
    undone = sum(bool(row.undoes) for row in rows)
    caught = len(noticed) + len(only_white)
    yield (
        f"{len(rows)} bugs, {undone} of them real fixes undone; {same} cannot be noticed. Of the "
        f"other {len(real)}, {caught} were noticed ({100 * caught / max(len(real), 1):.1f} %): "
        f"{len(noticed)} from outside, and {len(only_white)} by the white box alone."
    )
    if noticed:
        # As the table says them: else it would not come out the same from what stands there.
        seconds = [round(found.seconds, 1) for found in noticed]
        yield (
            f"From the moment when a bug was put to work: {mean(seconds):.1f} s on average, "
            f"{median(seconds):.1f} s in the middle."
        )
    if len(left) == len(real):
        return
    if left:
        yield "\nNot noticed:\n"
    for row, one in left:
        yield f"- {named(row)}: {row.survives or _looked(one)}"


def _looked(found: Found | None) -> str:
    if found is None:
        return "it was not looked for"
    return f"after {found.seconds:.0f} s" if found.seconds else "nothing noticed it"


def _is_seen(found: Found | None) -> bool:
    return found is not None and found.is_noticed and found.rule.startswith("kernel-")


def _by(row: Mutant, found: Found | None) -> str:
    if row.equivalent:
        return f"cannot be noticed: {row.equivalent}"
    if found is None:
        return "(not looked for)"
    if not found.is_noticed:
        return "**survived**" if found.control else f"**{found.how}**"
    if found.step.startswith("fuzz:"):
        return "`vmm fuzz`"
    return f"`{found.scenario}`" if found.scenario.isascii() and found.scenario else "the machine"


def _at(found: Found | None) -> str:
    if found is None or not found.is_noticed:
        return ""
    match found.how:
        case "differs":
            finding = _FINDING.search(found.step)
            return found.rule or (finding[1] if finding else found.step.partition(",")[0])
        case "complained":
            return "the kernel's log: " + found.step.partition("(at ")[0].strip()[:60].replace(
                "|", "/"
            )
        case "hung":
            return "it hangs"
        case _:
            return ""


def _after(found: Found | None) -> str:
    return f"{found.seconds:.1f} s" if found is not None and found.is_noticed else ""


def _inside(found: Found | None) -> str:
    if found is None:
        return ""
    return f"{found.rule} in `{found.scenario}`" if _is_seen(found) else "nothing more"
