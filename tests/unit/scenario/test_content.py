"""What pages hold: identities that tell them apart, and changes that are found byte by byte."""

import itertools

from hypothesis import given, strategies as st

from vmm.model.contents import Contents
from vmm.scenario import content
from vmm.scenario.operations import PAGE_SIZE_BYTES, Mapping

MAPPINGS = st.integers(0, 254)
PAGES = st.integers(0, (1 << 24) - 1)
BYTES = st.binary(min_size=64, max_size=64)


@given(MAPPINGS, PAGES)
def test_identity_says_which_page_it_is(mapping: int, page: int) -> None:
    assert content.identify(content.identity(mapping, page)) == (mapping, page)


@given(MAPPINGS, PAGES, st.integers(0, 0xFFF - 3))
def test_page_is_full_of_its_identity_but_for_its_code(mapping: int, page: int, at: int) -> None:
    data = content.page_bytes(mapping, page)
    code = content.stub(content.identity(mapping, page))
    assert len(data) == PAGE_SIZE_BYTES
    assert data[content.STUB_OFFSET :].startswith(code)
    at -= at % 4
    if not content.STUB_OFFSET <= at < content.STUB_OFFSET + len(code):
        word = int.from_bytes(data[at : at + 4], "little")
        assert content.identify(word) == (mapping, page)


@given(st.integers(0, 9), st.integers(0, 255))
def test_code_that_was_written_over_is_known_for_it(at: int, byte: int) -> None:
    code = bytearray(content.stub(0x12345678))
    code[at % len(code)] = byte
    identity = content.stub_identity(bytes(code))
    assert identity is None or content.stub(identity) == code


@given(BYTES, BYTES)
def test_changed_runs_turn_the_old_bytes_into_the_new_and_touch_no_other(
    old: bytes, new: bytes
) -> None:
    patched = bytearray(old)
    runs = content.changed_runs(old, new)
    for at, data in runs:
        assert all(before != after for before, after in zip(old[at:], data, strict=False))
        patched[at : at + len(data)] = data
    assert bytes(patched) == new
    # Maximal: between two runs lies at least one byte that did not change.
    ends = [at + len(data) for at, data in runs]
    assert all(end < at for end, (at, _) in zip(ends, runs[1:], strict=False))


@given(st.lists(st.sampled_from([b"\1\0", b"\2\0"]), max_size=20))
def test_run_lengths_unfold_to_the_data(elements: list[bytes]) -> None:
    runs = content.run_lengths(b"".join(elements), 2)
    unfolded = [value.to_bytes(2, "little") for value, times in runs for _ in range(times)]
    assert unfolded == elements
    assert all(left[0] != right[0] for left, right in itertools.pairwise(runs))


@given(st.lists(st.tuples(st.integers(0, 3 * PAGE_SIZE_BYTES - 8), st.binary(max_size=8))))
def test_contents_are_the_tags_and_what_was_written_since(
    writes: list[tuple[int, bytes]],
) -> None:
    contents = Contents((Mapping("other", 1), Mapping("a", 3)))
    tagged = b"".join(content.page_bytes(1, page) for page in range(3))
    expected = bytearray(tagged)
    for at, data in writes:
        contents.write("a", at, data)
        expected[at : at + len(data)] = data
    assert contents.read("a", 0, len(expected)) == expected
    patched = bytearray(tagged)
    for change in contents.changes():
        patched[change.offset : change.offset + len(change.data)] = change.data
    assert patched == expected
    contents.forget_changes()
    assert contents.changes() == ()
