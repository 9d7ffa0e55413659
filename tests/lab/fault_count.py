"""How many faults the wrong kernel has of each kind, and what finds them.

``scripts/fault-count`` prints it, from the sources of the faults, `caught.json` (which curated
scenarios catch them) and `found_alone.json` (which ones the random search has found without any).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.lab.fuzz_table import FOUND_ALONE
from tests.lab.lab import HERE, faults

KINDS = {
    "insn": "instructions that read and write",
    "strings": "stacks, strings and descriptor tables",
    "elements": "single elements, operands and FPU state",
    "long": "instructions in 64-bit mode alone",
    "ports": "string instructions on ports",
    "starts": "page tables, code and interrupts in slots",
    "clocks": "clocks that KVM writes",
    "devices": "coalesced MMIO and eventfds",
    "host": "host memory that changes",
    "others": "several VMs",
    "threads": "threads at the same time",
}
"""Kinds of what guests and hosts do besides changing slots, each by the file of its faults."""

_STRING = re.compile(r'"([a-z0-9-]+)"')


@dataclass(frozen=True, slots=True)
class Count:
    """The faults of one kind, those that curated scenarios catch, and those found without."""

    kind: str
    faults: frozenset[str]
    caught: frozenset[str]
    found: frozenset[str]


def counts() -> Iterator[Count]:
    """Yield the counts of each kind."""
    known = {fault.name for fault in faults()}
    caught = json.loads((HERE / "caught.json").read_text())
    found = json.loads(FOUND_ALONE.read_text())
    for file, kind in KINDS.items():
        source = (HERE / "wrong_kernel" / f"faults_{file}.c").read_text()
        names = frozenset(known.intersection(_STRING.findall(source)))
        yield Count(
            kind,
            names,
            frozenset(name for name in names if caught.get(name)),
            names & found.keys(),
        )


def main() -> None:
    """Print a line for each kind, and the sum."""
    every = tuple(counts())
    for count in every:
        show(count.kind, len(count.faults), len(count.caught), len(count.found))
    show(
        "all",
        sum(len(count.faults) for count in every),
        sum(len(count.caught) for count in every),
        sum(len(count.found) for count in every),
    )


def show(kind: str, number: int, caught: int, found: int) -> None:
    """Print a line of the table."""
    print(
        f"{kind:44} {number:4} faults, {caught:4} caught by a curated scenario, "
        f"{found:3} found by the search alone"
    )


if __name__ == "__main__":
    main()
