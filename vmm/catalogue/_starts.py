"""Helpers for scenarios with `Start`: slots, programs, accesses."""

from collections.abc import Iterator

from vmm.catalogue._area import Area
from vmm.catalogue._build import Slot, at
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    ChangeHostMemory,
    Place,
    Start,
)
from vmm.scenario.pagetables import PLAIN, PROGRAM_OFFSET, Tables
from vmm.scenario.programs import LOAD, STORE, entries, writes

TABLES = Slot(1, 0x100, at("a"), pages=4)
CODE = Slot(2, 0x104, at("a", 4), pages=4)
GFNS = (0x104, 0x105, 0x106, 0x107)
STORING, LOADING = 0, 1
"""The pages of the two programs, as numbered by the page tables."""

DATA = 2
USUAL = Tables("a", 0x100, GFNS)
VALUE = 0x1BAD_F00D


WALK = "FNAME(walk_addr_generic); Intel SDM vol. 3, 4.5"


def programs(mapping: str = "a") -> Iterator[AnyOperation]:
    """Yield the operations that write the programs to the first two pages after page tables."""
    for page, program in ((4, STORE), (5, LOAD)):
        yield from writes(Place(mapping, page * PAGE_SIZE_BYTES + PROGRAM_OFFSET), program)


def lowest_level(place: Place, gfns: tuple[int, ...], bits: int = PLAIN) -> Iterator[AnyOperation]:
    """Yield the host's operations that write a table of pages."""
    yield ChangeHostMemory(place)
    yield from entries(place, {n: gfn * PAGE_SIZE_BYTES | bits for n, gfn in enumerate(gfns)})


start_scenario = Area(prefix="start-", tags=("start",), source=WALK, survey="none")


def accesses(tables: Tables = USUAL) -> tuple[Start, ...]:
    """Run the code in a page, write a word, and read it and another one."""
    return (
        tables.run(3),
        tables.access(STORING, DATA, VALUE),
        tables.access(LOADING, DATA),
        tables.access(LOADING, 3),
    )
