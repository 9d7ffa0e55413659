"""What the model holds of host memory takes time in proportion to what is written."""

import random
import time

import pytest

from vmm.model.contents import Contents
from vmm.scenario.content import changed_runs, page_bytes
from vmm.scenario.history import HostChange
from vmm.scenario.operations import PAGE_SIZE_BYTES, Mapping

PAGES = 8192
TOO_LONG_S = 10.0
"""Copying what is left after each page takes half a minute; once through takes a second."""


def test_many_pages_are_written_and_looked_at_once() -> None:
    contents = Contents((Mapping("a", PAGES),))
    start = time.process_time()
    contents.write("a", 0, bytes(PAGES * PAGE_SIZE_BYTES))
    assert time.process_time() - start < TOO_LONG_S
    assert contents.read("a", (PAGES - 1) * PAGE_SIZE_BYTES, 8) == bytes(8)


def test_bytes_over_a_page_border_land_on_both_sides() -> None:
    contents = Contents((Mapping("a", 3),))
    before = contents.read("a", PAGE_SIZE_BYTES - 4, PAGE_SIZE_BYTES + 8)
    data = bytes(range(1, 9))
    contents.write("a", PAGE_SIZE_BYTES - 3, data)
    assert contents.read("a", PAGE_SIZE_BYTES - 3, 8) == data
    assert contents.read("a", PAGE_SIZE_BYTES - 4, 1) == before[:1]
    assert contents.read("a", PAGE_SIZE_BYTES + 5, 1) == before[9:10]
    contents.write("a", 0, data * (PAGE_SIZE_BYTES // 8 * 2 + 1))
    assert contents.read("a", 2 * PAGE_SIZE_BYTES, 9)[:8] == data


@pytest.mark.parametrize("longest", [4, 200, 2 * PAGE_SIZE_BYTES])
def test_any_writes_read_and_show_as_those_to_plain_bytes(longest: int) -> None:
    chance = random.Random(longest)
    names, pages = ("a", "b"), 3
    contents = Contents(tuple(Mapping(name, pages) for name in names))
    fresh = {
        name: b"".join(page_bytes(index, page) for page in range(pages))
        for index, name in enumerate(names)
    }
    now = {name: bytearray(held) for name, held in fresh.items()}
    seen = dict(fresh)
    for number in range(300):
        name = chance.choice(names)
        length = chance.randint(1, longest)
        offset = chance.randrange(pages * PAGE_SIZE_BYTES - length + 1)
        assert contents.read(name, offset, length) == now[name][offset : offset + length]
        data = chance.randbytes(length)
        contents.write(name, offset, data)
        now[name][offset : offset + length] = data
        hidden = {("a", 1)} if number % 3 else set()
        expected = [
            HostChange(each, page * PAGE_SIZE_BYTES + at, run)
            for each in names
            for page in range(pages)
            if (each, page) not in hidden
            for at, run in changed_runs(_page(seen[each], page), _page(now[each], page))
        ]
        assert contents.changes(hidden) == tuple(expected)
        if not hidden and number % 4 == 0:
            contents.forget_changes()
            seen = {each: bytes(held) for each, held in now.items()}


def _page(held: bytes | bytearray, page: int) -> bytes:
    return bytes(held[page * PAGE_SIZE_BYTES : (page + 1) * PAGE_SIZE_BYTES])
