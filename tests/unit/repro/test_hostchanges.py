"""What a C program must not look at after each change of host memory."""

import re

from vmm.repro.account import Account
from vmm.repro.cnames import CNames
from vmm.repro.hostchanges import changes
from vmm.scenario.hostpages import HostPages
from vmm.scenario.operations import ChangeHostMemory, Mapping, Place

MAPPINGS = (Mapping("a", 9, "memfd"), Mapping("b", 9), Mapping("c", 9, "memfd", of="a"))
CHANGES = (
    ChangeHostMemory(Place("a", 0x1000), 4, "unmap"),
    ChangeHostMemory(Place("a", 0x2000), 6, "forbid"),
    ChangeHostMemory(Place("a", 0x2000), 1, "drop"),
    ChangeHostMemory(Place("b", 0x3000), 2, "map_file", Place("a", 0x6000)),
    ChangeHostMemory(Place("c", 0x5000), 1, "truncate"),
    ChangeHostMemory(Place("a", 0x1000), 7, "map"),
    ChangeHostMemory(Place("b", 0x2000), 7, "map_file", Place("a", 0x1000)),
    ChangeHostMemory(Place("b", 0x3000), 1, "map_fresh"),
    ChangeHostMemory(Place("b", 0x7000), 1, "unmap"),
    ChangeHostMemory(Place("c", 0x5000), 4, "extend"),
    ChangeHostMemory(Place("b", 0x1000), 8, "allow"),
)


def test_after_each_change_a_program_knows_every_page_that_is_absent() -> None:
    account = Account(CNames(MAPPINGS))
    host, other = HostPages(MAPPINGS), HostPages(MAPPINGS)
    known: set[tuple[str, int]] = set()
    for op in CHANGES:
        other.change(op)
        for line in changes(account, host, op):
            if mark := re.fullmatch(r"mark_absent\(&mem_(.), (.*), (.*), (.*)\);", line):
                name, offset, pages, absent = mark.groups()
                first = int(offset, 16) >> 12
                run = {(name, page) for page in range(first, first + int(pages))}
                assert run.isdisjoint(known) if absent == "true" else run <= known
                known ^= run
        assert known == {
            (mapping.name, page)
            for mapping in MAPPINGS
            for page in range(mapping.pages)
            if other.is_absent(mapping.name, page)
        }
    assert known == set()
