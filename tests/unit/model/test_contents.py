"""What the model holds of host memory takes time in proportion to what is written."""

import time

from vmm.model.contents import Contents
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
