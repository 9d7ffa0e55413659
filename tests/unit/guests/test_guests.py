"""The guests' code and mailboxes, as bytes; tests/kvm has them run."""

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from guests import image, mailbox
from guests._image import ffi, lib
from guests.image import Access
from guests.mailbox import Sweep
from tests.touches import Touch
from vmm.scenario import content, operations

U32 = st.integers(0, 0xFFFF_FFFF)
TOUCHES = st.builds(Touch, st.integers(0, 0xFFFF_FFFC), st.sampled_from(Access), U32)
READS = {Access.READ_1, Access.READ_2, Access.READ_4}

ACCESSES = {
    Access.READ_1: "3e3e67a0",  # mov al, [gpa]
    Access.READ_2: "3e3e67a1",  # mov ax, [gpa]
    Access.READ_4: "3e6766a1",  # mov eax, [gpa]
    Access.WRITE_1: "3e67c605",  # mov byte [gpa], value
    Access.WRITE_2: "3e67c705",  # mov word [gpa], value
    Access.WRITE_4: "6766c705",  # mov dword [gpa], value
}


def slot() -> memoryview:
    """Return a guest's slot of bytes that nobody wrote yet, none of them zero."""
    return memoryview(bytearray(b"\xcc" * lib.GUEST_SLOT_SIZE))


def changed(view: memoryview) -> tuple[int, int]:
    """Return the first and the last offset that differs from ``slot()``."""
    offsets = [offset for offset, byte in enumerate(view) if byte != 0xCC]
    return offsets[0], offsets[-1]


def touch_record(view: memoryview, index: int) -> bytes:
    start = mailbox.touch_offset(index)
    return bytes(view[start : start + lib.GUEST_TOUCH_SIZE])


def test_image_fits_in_front_of_the_mailboxes() -> None:
    assert 0 < len(image.code()) <= lib.GUEST_IMAGE_SIZE_MAX


def test_every_source_is_in_the_image() -> None:
    folder = Path(image.__file__).parent
    included = set(re.findall(r'#include "(.*\.S)"', (folder / "image.S").read_text()))
    assert included == {path.name for path in folder.glob("*.S")} - {"image.S"}


def test_image_is_followed_by_nothing_in_its_page() -> None:
    page = bytes(ffi.buffer(lib.guest_image, lib.GUEST_IMAGE_SIZE_MAX))
    assert page == image.code().ljust(lib.GUEST_IMAGE_SIZE_MAX, b"\0")


def test_labels_lie_in_the_image_and_differ() -> None:
    labels = [image.SWEEP_ENTRY, image.SWEEP_SKIP, lib.guest_labels.sweep_end, *image.SWEEPS]
    assert len(set(labels)) == len(labels)
    assert all(0 < label < len(image.code()) for label in labels)


def test_structures_are_what_the_mailbox_packs() -> None:
    assert ffi.sizeof("struct guest_touch") == lib.GUEST_TOUCH_SIZE == struct.calcsize("<IIQ")
    assert ffi.sizeof("struct guest_sweep") == lib.GUEST_SWEEP_SIZE == struct.calcsize("<5I2H")
    assert ffi.offsetof("struct guest_sweep", "remaining") == lib.GUEST_SWEEP_REMAINING


@pytest.mark.parametrize("code", Access)
def test_touch_is_one_instruction_of_its_width(code: Access) -> None:
    view = slot()
    mailbox.encode_touches(view, [Touch(0x1234_5678, code)])
    record = touch_record(view, 0)
    assert record[:4].hex() == ACCESSES[code]
    assert record[4:8] == bytes.fromhex("78563412")


@given(st.lists(TOUCHES, max_size=40))
def test_touches_hold_what_was_asked(touches: list[Touch]) -> None:
    view = slot()
    mailbox.encode_touches(view, touches)
    for index, (gpa, code, value) in enumerate(touches):
        record = touch_record(view, index)
        width = image.WIDTHS[code]
        assert int.from_bytes(record[4:8], "little") == gpa
        if code in READS:
            result = int.from_bytes(record[14:16], "little")
            assert result == lib.GUEST_TOUCH_RESULTS + 4 * index
        else:
            assert record[8 : 8 + width] == value.to_bytes(4, "little")[:width]
            assert record[8 + width :] == b"\x3e" * (7 - width) + b"\x90"
    assert touch_record(view, len(touches)).startswith(b"\xb8\x00\x00\xff\xe0")


@given(st.lists(U32, max_size=40))
def test_results_come_back_in_order(values: list[int]) -> None:
    view = slot()
    mailbox.encode_touches(view, [Touch(0, Access.READ_4)] * len(values))
    assert mailbox.decode_touches(view, len(values)) == [0] * len(values)
    for index, value in enumerate(values):
        result = int.from_bytes(touch_record(view, index)[14:16], "little")
        view[result : result + 4] = value.to_bytes(4, "little")
    assert mailbox.decode_touches(view, len(values)) == values


def test_a_full_mailbox_of_touches_stays_in_its_place() -> None:
    view = slot()
    mailbox.encode_touches(view, [Touch(0, Access.READ_4)] * mailbox.MAX_TOUCHES)
    assert changed(view) == (lib.GUEST_TOUCH_RESULTS, lib.GUEST_PAGE_TABLES - 1)
    assert len(mailbox.decode_touches(view, mailbox.MAX_TOUCHES)) == mailbox.MAX_TOUCHES


def test_too_many_touches_are_refused() -> None:
    view = slot()
    count = mailbox.MAX_TOUCHES + 1
    with pytest.raises(ValueError, match="mailbox holds"):
        mailbox.encode_touches(view, [Touch(0, Access.READ_4)] * count)
    with pytest.raises(ValueError, match="mailbox holds"):
        mailbox.decode_touches(view, count)
    assert bytes(view) == bytes(slot())


@pytest.mark.parametrize("code", Access)
def test_touch_may_reach_4_gib_but_not_beyond(code: Access) -> None:
    last = (1 << 32) - image.WIDTHS[code]
    mailbox.encode_touches(slot(), [Touch(last, code)])
    with pytest.raises(ValueError, match="beyond 4 GiB"):
        mailbox.encode_touches(slot(), [Touch(last + 1, code)])


def test_a_negative_gpa_is_refused() -> None:
    with pytest.raises(struct.error):
        mailbox.encode_touches(slot(), [Touch(-1, Access.READ_1)])


@given(st.integers(0, mailbox.MAX_TOUCHES - 1), st.integers(0, lib.GUEST_TOUCH_SIZE - 1))
def test_rip_anywhere_in_a_record_tells_its_index(index: int, into: int) -> None:
    assert mailbox.touch_at(mailbox.touch_offset(index) + into) == index


@pytest.mark.parametrize("rip", [0, image.TOUCH_ENTRY - 1, lib.GUEST_SLOT_SIZE - 1])
def test_with_rip_elsewhere_no_touch_has_begun(rip: int) -> None:
    assert mailbox.touch_at(rip) == 0


def sweep_fields(view: memoryview, index: int) -> tuple[int, ...]:
    return struct.unpack_from("<5I2H", view, lib.GUEST_SWEEPS + index * lib.GUEST_SWEEP_SIZE)


def test_sweeps_hold_what_was_asked() -> None:
    view = slot()
    write = Sweep(0x1000, Access.WRITE_2, 8, value=0xBEEF)
    read = Sweep(0x2000, Access.READ_4, 3, buffer_offset=16)
    mailbox.encode_sweeps(view, 0x7FFF_0000, [write, read])
    buffer = 0x7FFF_0000 + lib.GUEST_SWEEP_BUFFER
    assert sweep_fields(view, 0) == (0x1000, 0, 8, 0xBEEF, 8, image.SWEEPS[Access.WRITE_2], 0)
    assert sweep_fields(view, 1) == (buffer + 16, 0x2000, 3, 0, 3, image.SWEEPS[Access.READ_4], 0)
    assert sweep_fields(view, 2)[5] == lib.guest_labels.sweep_end


def test_a_full_mailbox_of_sweeps_stays_in_its_place() -> None:
    view = slot()
    sweeps = [Sweep(0, Access.WRITE_1, 1)] * mailbox.MAX_SWEEPS
    mailbox.encode_sweeps(view, 0, sweeps)
    first, last = changed(view)
    assert first == lib.GUEST_SWEEPS
    assert last < lib.GUEST_SWEEP_BUFFER
    with pytest.raises(ValueError, match="mailbox holds"):
        mailbox.encode_sweeps(view, 0, [*sweeps, sweeps[0]])


@pytest.mark.parametrize("code", [Access.READ_1, Access.READ_2, Access.READ_4])
def test_reading_sweep_stays_in_the_buffer(code: Access) -> None:
    count = mailbox.SWEEP_BUFFER_SIZE_BYTES // image.WIDTHS[code]
    mailbox.encode_sweeps(slot(), 0, [Sweep(0, code, count)])
    for outside in (
        Sweep(0, code, count + 1),
        Sweep(0, code, count, buffer_offset=1),
        Sweep(0, code, 1, buffer_offset=-1),
    ):
        with pytest.raises(ValueError, match="leaves the buffer"):
            mailbox.encode_sweeps(slot(), 0, [outside])


@pytest.mark.parametrize("code", Access)
def test_sweep_may_reach_4_gib_but_not_beyond(code: Access) -> None:
    size_bytes = 4 * image.WIDTHS[code]
    mailbox.encode_sweeps(slot(), 0, [Sweep((1 << 32) - size_bytes, code, 4)])
    with pytest.raises(ValueError, match="beyond 4 GiB"):
        mailbox.encode_sweeps(slot(), 0, [Sweep((1 << 32) - size_bytes + 1, code, 4)])


def test_sweep_buffer_is_the_part_that_the_contract_names() -> None:
    view = slot()
    mailbox.sweep_buffer(view)[:] = bytes(mailbox.SWEEP_BUFFER_SIZE_BYTES)
    end = lib.GUEST_SWEEP_BUFFER + lib.GUEST_SWEEP_BUFFER_SIZE
    assert changed(view) == (lib.GUEST_SWEEP_BUFFER, end - 1)


def assembled_stub(identity: int) -> bytes:
    """Return the code that was assembled for a page, with its identity in both places."""
    labels = lib.guest_labels
    stub = bytearray(ffi.buffer(lib.guest_stub, labels.stub_size))
    for place in (labels.stub_long_identity, labels.stub_identity):
        stub[place : place + 4] = identity.to_bytes(4, "little")
    return bytes(stub)


@given(U32)
def test_stub_answers_the_identity_in_both_modes(identity: int) -> None:
    stub = assembled_stub(identity)
    load = b"\xb8" + identity.to_bytes(4, "little")
    out = bytes((0xE7, image.EXECUTED_PORT, 0xF4))
    # Read with four bytes of immediate, the first instruction leads to the second.
    assert stub[:5] == bytes.fromhex("b80000eb08")
    assert stub[5:13] == load + out
    # Read with two, it leads to a jump over the eight bytes of the other mode.
    assert stub[13:] == b"\x66" + load + b"\x66" + out


@given(U32)
def test_pages_are_tagged_with_the_guests_own_stub(identity: int) -> None:
    assert content.stub(identity) == assembled_stub(identity)
    assert content.stub_identity(assembled_stub(identity)) == identity


def test_scenarios_know_the_sizes_and_places_of_the_contract() -> None:
    assert lib.guest_labels.stub_size == content.STUB_LENGTH
    assert content.STUB_OFFSET == lib.GUEST_STUB_PAGE_OFFSET
    assert operations.GUEST_SIZE_BYTES == lib.GUEST_SLOT_SIZE


@pytest.mark.parametrize("at", range(content.STUB_LENGTH))
def test_a_changed_stub_is_no_stub(at: int) -> None:
    stub = bytearray(content.stub(0x1234_5678))
    stub[at] ^= 1
    assert content.stub_identity(bytes(stub)) is None
