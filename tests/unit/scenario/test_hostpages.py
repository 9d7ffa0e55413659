"""What pages of host memory show, as the host changes them."""

import pytest

from vmm.model.contents import Contents
from vmm.scenario.content import page_bytes
from vmm.scenario.hostpages import HostPages, Shown
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    ChangeHostMemory,
    HostChangeKind,
    HostWrite,
    Mapping,
    NewVm,
    Place,
    Race,
    Scenario,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate

PAGE = PAGE_SIZE_BYTES
FILE = Mapping("file", 4, "memfd")
COPY = Mapping("copy", 4, "private_file")
AGAIN = Mapping("again", 3, "memfd", of="file")
ASIDE = Mapping("aside", 4, "private_file", of="file")
PLAIN = Mapping("plain", 4)
HUGE_FILE = Mapping("tlb", 1024, "hugetlb_memfd")
FRAMES = Mapping("frames", 4, "pfnmap", of="file")
KEPT = (FILE, AGAIN, FRAMES)
ALL = (FILE, COPY, AGAIN, ASIDE, PLAIN)
ZEROS = bytes(PAGE)


def change(how: HostChangeKind, name: str, page: int, pages: int = 1) -> ChangeHostMemory:
    source = Place("file", PAGE) if how == "map_file" else None
    return ChangeHostMemory(Place(name, page * PAGE), pages, how, source)


def contents_after(*changes: ChangeHostMemory) -> tuple[Contents, HostPages]:
    host = HostPages(ALL)
    contents = Contents(ALL, host)
    for each in changes:
        contents.change(each)
    return contents, host


def page_of(contents: Contents, name: str, page: int) -> bytes:
    return contents.read(name, page * PAGE, PAGE)


def test_a_second_mapping_shows_what_is_written_through_the_first() -> None:
    contents, _ = contents_after()
    contents.write("file", 8, b"news")
    assert contents.read("again", 8, 4) == contents.read("aside", 8, 4) == b"news"
    changed = {(each.mapping, each.offset) for each in contents.changes()}
    assert changed == {("file", 8), ("again", 8), ("aside", 8)}


def test_what_is_written_aside_stays_there_until_it_is_dropped() -> None:
    contents, _ = contents_after()
    contents.write("aside", 8, b"mine")
    contents.write("file", 16, b"news")
    assert contents.read("file", 8, 4) != b"mine"
    assert contents.read("aside", 16, 4) != b"news"
    contents.change(change("drop", "aside", 0))
    assert page_of(contents, "aside", 0) == page_of(contents, "file", 0)


def test_a_private_file_shows_its_identity_again() -> None:
    contents, _ = contents_after()
    contents.write("copy", PAGE, b"mine")
    contents.change(change("drop", "copy", 0, 4))
    assert page_of(contents, "copy", 1) == page_bytes(1, 1)
    assert contents.changes() == ()


def test_a_cut_takes_copies_and_leaves_zeros() -> None:
    contents, host = contents_after()
    contents.write("aside", 2 * PAGE, b"mine")
    contents.change(change("truncate", "file", 2, 2))
    absent = [name for name in ("file", "again", "aside", "plain") if host.is_absent(name, 2)]
    assert absent == ["file", "again", "aside"]
    assert not host.is_absent("file", 1)
    contents.change(change("extend", "file", 2, 2))
    assert not host.is_absent("aside", 2)
    assert page_of(contents, "aside", 2) == page_of(contents, "file", 3) == ZEROS


def test_only_pages_that_were_cut_off_are_zeros_after_an_extension() -> None:
    contents, _ = contents_after()
    contents.change(change("extend", "file", 1, 3))
    assert page_of(contents, "file", 1) == page_bytes(0, 1)
    contents.change(change("truncate", "file", 3, 1))
    contents.change(change("extend", "file", 1, 3))
    assert page_of(contents, "file", 2) == page_bytes(0, 2)
    assert page_of(contents, "file", 3) == ZEROS


def test_a_file_over_other_memory_is_that_file_until_it_is_mapped_anew() -> None:
    contents, host = contents_after(change("map_file", "plain", 2))
    assert host.shown("plain", 2) == Shown("file", 1, private=False)
    contents.write("plain", 2 * PAGE, b"news")
    assert contents.read("file", PAGE, 4) == b"news"
    assert set(host.viewers("file", 1)) == {("file", 1), ("again", 1), ("aside", 1), ("plain", 2)}
    contents.change(change("map", "plain", 2))
    assert page_of(contents, "plain", 2) == ZEROS
    assert ("plain", 2) not in host.viewers("file", 1)


def test_fresh_memory_hides_a_file_that_is_whole_when_it_is_back() -> None:
    contents, _ = contents_after(change("map_fresh", "file", 0))
    assert page_of(contents, "file", 0) == ZEROS
    assert page_of(contents, "again", 0) == page_bytes(0, 0)
    contents.write("file", 0, b"lost")
    contents.change(change("map", "file", 0))
    assert page_of(contents, "file", 0) == page_bytes(0, 0)


def test_what_may_be_read_only_may_be_written_again() -> None:
    _, host = contents_after(change("write_protect", "plain", 1, 2))
    assert [page for page in range(4) if host.is_read_only("plain", page)] == [1, 2]
    host.change(change("allow", "plain", 0, 2))
    assert [page for page in range(4) if host.is_read_only("plain", page)] == [2]


@pytest.mark.parametrize(
    ("operations", "mappings", "problem"),
    [
        ((change("map_file", "plain", 3, 2),), ALL, "not within the 4 pages of 'plain'"),
        ((ChangeHostMemory(Place("plain"), 1, "map_file"),), ALL, "what .map_file"),
        (
            (ChangeHostMemory(Place("plain"), 1, "drop", Place("file")),),
            ALL,
            "what 'map_file' maps",
        ),
        ((ChangeHostMemory(Place("plain"), 1, "map_file", Place("copy")),), ALL, "no memfd of its"),
        ((ChangeHostMemory(Place("plain"), 1, "map_file", Place("file", 5)),), ALL, "whole page"),
        ((change("truncate", "again", 1, 2),), ALL, "the file is that of 'file'"),
        ((change("truncate", "file", 1, 2),), ALL, "the last pages are needed"),
        ((change("map_fresh", "file", 1), change("punch", "file", 1)), ALL, "'map' them first"),
        ((change("unmap", "copy", 1), change("write_protect", "copy", 1)), ALL, "are mapped"),
        ((change("truncate", "file", 1, 3), HostWrite(Place("aside"), 1)), ALL, "takes pages of"),
        ((change("write_protect", "plain", 1), HostWrite(Place("plain"), 1)), ALL, "takes pages"),
        ((change("fork", "plain", 0), change("fork", "plain", 0)), ALL, "take turns"),
        ((change("reap", "plain", 0),), ALL, "take turns"),
        ((change("fork", "plain", 0), NewVm(), change("reap", "plain", 0)), ALL, "take turns"),
        ((change("move_back", "plain", 0),), ALL, "nothing was moved away"),
        ((change("move_away", "plain", 1), change("drop", "plain", 0, 2)), ALL, "moved back first"),
        ((change("move_away", "plain", 1), change("move_back", "plain", 0, 2)), ALL, "no others"),
        ((change("forbid", "plain", 0), change("move_away", "plain", 1)), ALL, "in another way"),
        ((change("punch", "tlb", 0),), (HUGE_FILE,), "comes and goes in 512 pages"),
        ((change("punch", "tlb", 256, 512),), (HUGE_FILE,), "comes and goes in 512 pages"),
        ((change("drop", "tlb", 0, 512),), (HUGE_FILE,), "drop"),
        ((), (Mapping("tlb", 513, "hugetlb_memfd"),), "in multiples of 512 pages"),
        ((change("settle", "plain", 0),), ALL, "of a 'fetch_later' or 'guard'"),
        ((change("guard", "plain", 0, 2), change("settle", "plain", 0)), ALL, "'settle' takes the"),
        ((change("guard", "plain", 0), change("drop", "plain", 1)), ALL, "wait for 'settle'"),
        ((change("fetch_later", "plain", 0), change("fork", "plain", 0)), ALL, "wait for 'settle'"),
        ((change("fork", "plain", 0), change("guard", "plain", 0)), ALL, "away, or shares them"),
        ((change("unmap", "plain", 0), change("guard", "plain", 1)), ALL, "away, or shares them"),
        ((change("guard", "plain", 0), Race()), (PLAIN,), "have to 'settle' first"),
        ((change("guard", "file", 0),), ALL, "guard"),
        ((Race(),), ALL, "races take no mapping of a copy"),
        ((), (Mapping("x", 2, "memfd", of="file"),), "no mapping of kind memfd"),
        (
            (),
            (FILE, Mapping("x", 2, "anonymous", of="file")),
            "pfnmap show a file",
        ),
        ((), (FILE, Mapping("x", 2, "pfnmap")), "no mapping of kind memfd"),
        ((change("punch", "file", 1),), KEPT, "'frames' keeps the pages of the file"),
        ((change("punch", "again", 1),), KEPT, "'frames' keeps the pages of the file"),
        ((change("truncate", "file", 1, 3),), KEPT, "'frames' keeps the pages of the file"),
        ((change("drop", "frames", 1),), KEPT, "'drop' takes a mapping of kind"),
        ((change("fork", "frames", 1),), KEPT, "'fork' takes a mapping of kind"),
        ((change("punch", "frames", 1),), KEPT, "'punch' takes a mapping of kind"),
        ((), (FILE, Mapping("x", 5, "memfd", of="file")), "'file' has 4"),
        ((), (FILE, AGAIN, Mapping("x", 1, "memfd", of="again")), "no mapping of kind memfd"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(
    operations: tuple[AnyOperation, ...], mappings: tuple[Mapping, ...], problem: str
) -> None:
    with pytest.raises(ScenarioError, match=problem):
        validate(Scenario("odd", operations, mappings))


def test_page_frames_show_their_file_until_the_host_maps_something_else_there() -> None:
    host = HostPages(KEPT)
    assert host.shown("frames", 2) == Shown("file", 2, private=False)
    assert {("frames", 1), ("again", 1), ("file", 1)} == set(host.viewers("file", 1))
    assert not host.is_own("frames")
    host.change(change("unmap", "frames", 1, 2))
    host.change(change("write_protect", "frames", 3))
    assert [host.access("frames", page) for page in range(4)] == [
        *("everything", "nothing", "nothing", "reading"),
    ]
    host.change(change("map", "frames", 1, 2))
    assert host.shown("frames", 2) == Shown("file", 2, private=False)
