"""Bitmaps of the dirty log as page numbers, and back."""

import time

import pytest

from vmm.execution.dirty import UNWRITTEN, bitmap_of, dirty_pages
from vmm.scenario.history import DirtyPages
from vmm.scenario.operations import ClearDirtyLog


@pytest.mark.parametrize(
    "pages", [(), (0,), (63,), (64,), (0, 7, 8, 10, 63, 64, 127), tuple(range(192))]
)
def test_the_pages_of_a_bitmap_are_those_it_was_made_from(pages: tuple[int, ...]) -> None:
    log = bitmap_of(ClearDirtyLog(1, pages=pages), 24)
    assert dirty_pages(log) == DirtyPages(pages, words=3)
    assert dirty_pages(log + UNWRITTEN * 5) == DirtyPages(pages, words=3)


@pytest.mark.parametrize("words", range(9))
def test_a_log_ends_with_the_last_word_written_though_one_before_it_was_not(words: int) -> None:
    log = bytearray(UNWRITTEN * 8)
    log[words * 8 : words * 8 + 8] = bytes(8) if words < 8 else b""
    written = words + 1 if words < 8 else 0
    assert dirty_pages(bytes(log)).words == written


def test_pages_count_from_the_first_one_and_end_with_the_bitmap() -> None:
    assert bitmap_of(ClearDirtyLog(1, 64, pages=(64, 71, 72, 128)), 8) == b"\x81\x01" + bytes(6)
    assert bitmap_of(ClearDirtyLog(1), 8) == b"\xff" * 8


def test_a_bitmap_of_a_large_slot_takes_no_longer_than_its_length() -> None:
    """Of a slot of 16 GiB in which every page was written."""
    begun = time.process_time()
    assert len(dirty_pages(b"\xff" * (1 << 19)).pages) == 1 << 22
    assert time.process_time() - begun < 10


def test_a_bitmap_with_hardly_a_page_takes_hardly_any_time() -> None:
    begun = time.process_time()
    assert dirty_pages(bytes(1 << 24) + b"\1" + bytes(7)).pages == (1 << 27,)
    assert time.process_time() - begun < 5
