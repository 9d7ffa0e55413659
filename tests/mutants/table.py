"""The table of docs/mutants.md, made from the results."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median

from tests.mutants import results
from tests.mutants.found import Found
from tests.mutants.rows import Mutant, mutants, versions

DOCUMENT = Path(__file__).parents[2] / "docs" / "mutants.md"
BEGIN, END = "<!-- made by scripts/mutants --table: begin -->", "<!-- end -->"
NOTICED = ("differs", "complained", "hung")


def write() -> None:
    """Put the tables into the document, in the place of those that are there."""
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [part for version in versions() for part in of_version(version)]
    DOCUMENT.write_text("\n".join([f"{before}{BEGIN}", *parts, f"{END}{after}"]))


def of_version(version: str) -> Iterator[str]:
    """Yield the lines of one kernel's table."""
    rows, known = mutants(version), results.read(version)
    black = [known.get(results.key(row, white=False)) for row in rows]
    white = [known.get(results.key(row, white=True)) for row in rows]
    yield f"\n### Linux {version}\n"
    yield from _summary(rows, black, white)
    yield "\n| bug | noticed by | at | after | white box |"
    yield "|---|---|---|---|---|"
    for row, one, other in zip(rows, black, white, strict=True):
        undoes = f" ({row.undoes} undone)" if row.undoes else ""
        mmu = ", npt=0" if not row.npt else ""
        yield (
            f"| {row.subject}{undoes}{mmu} | {_by(row, one)} | {_at(one)} | {_after(one)} "
            f"| {_inside(other)} |"
        )


def _summary(
    rows: Sequence[Mutant], black: Sequence[Found | None], white: Sequence[Found | None]
) -> Iterator[str]:
    counted = [
        (found, other)
        for row, found, other in zip(rows, black, white, strict=True)
        if found is not None and not row.equivalent
    ]
    noticed = [found for found, _ in counted if found.how in NOTICED]
    only_white = [
        found
        for found, other in counted
        if found.how not in NOTICED and other is not None and other.rule.startswith("kernel-")
    ]
    same = sum(bool(row.equivalent) for row in rows)
    share = f"{100 * len(noticed) / len(counted):.1f} %" if counted else "none"
    yield (
        f"{len(rows)} bugs, {sum(bool(row.undoes) for row in rows)} of them real fixes undone. "
        f"Of {len(counted)} that were looked for and can be noticed, {len(noticed)} were ({share}) "
        f"from outside, and {len(only_white)} more by the white box alone; "
        f"{same} cannot be noticed, and {len(rows) - same - len(counted)} were not looked for."
    )
    if noticed:
        seconds = [found.seconds for found in noticed]
        yield (
            f"From the moment when a bug was put to work: {mean(seconds):.1f} s on average, "
            f"{median(seconds):.1f} s in the middle."
        )


def _by(row: Mutant, found: Found | None) -> str:
    if row.equivalent:
        return f"cannot be noticed: {row.equivalent}"
    if found is None:
        return "(not looked for)"
    if found.how == "survived" and "there was time" in found.step:
        return "nothing in the time that there was"
    if found.how not in NOTICED:
        return f"**{found.how}**"
    if found.step.startswith("fuzz:"):
        return "`vmm fuzz`"
    return f"`{found.scenario}`" if found.scenario.isascii() and found.scenario else "the machine"


def _at(found: Found | None) -> str:
    if found is None:
        return ""
    match found.how:
        case "differs":
            return found.rule or found.step.partition(",")[0]
        case "complained":
            return "the kernel's log: " + found.step.partition("(at ")[0].strip()[:60].replace(
                "|", "/"
            )
        case "hung":
            return "it hangs"
        case _:
            return ""


def _after(found: Found | None) -> str:
    return f"{found.seconds:.1f} s" if found is not None and found.how in NOTICED else ""


def _inside(found: Found | None) -> str:
    if found is None:
        return ""
    if found.rule.startswith("kernel-"):
        return f"{found.rule} in `{found.scenario}`"
    return "nothing more"
