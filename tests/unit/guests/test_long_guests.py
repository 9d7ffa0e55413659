"""What 64-bit mode has of its own: records and page tables, as bytes."""

import pytest
from hypothesis import given, strategies as st

from guests import image, mailbox
from guests._image import lib
from guests.image import Access
from guests.windows import WINDOW_STEP_BYTES, WINDOWS, NoWindowError, Windows
from tests.touches import Touch

SLOT_GPA = 0x7FFF_0000
GPAS = st.integers(0, (1 << 52) - 1)
ACCESSES = {
    Access.READ_1: ("3e8a0c25", "3e880c25"),  # mov cl, [address]; mov [result], cl
    Access.READ_2: ("668b0c25", "66890c25"),  # mov cx, [address]; mov [result], cx
    Access.READ_4: ("3e8b0c25", "3e890c25"),  # mov ecx, [address]; mov [result], ecx
    Access.WRITE_1: ("3ec60425", ""),  # mov byte [address], value
    Access.WRITE_2: ("66c70425", ""),  # mov word [address], value
    Access.WRITE_4: ("3ec70425", ""),  # mov dword [address], value
}


def slot() -> memoryview:
    return memoryview(bytearray(lib.GUEST_SLOT_SIZE))


def translate(view: memoryview, cr3: int, address: int) -> int | None:
    """Walk the page tables in a guest's slot as a processor would; None is a page fault."""
    table, shift = cr3, 39
    while True:
        at = table - SLOT_GPA + (address >> shift & 0x1FF) * 8
        entry = int.from_bytes(view[at : at + 8], "little")
        if not entry & 1:
            return None
        base = entry & ((1 << 52) - 0x1000)
        if shift == 12 or entry & 0x80:
            return base | address & ((1 << shift) - 1)
        table, shift = base, shift - 9


@pytest.mark.parametrize("code", Access)
def test_touch_is_one_instruction_of_its_width(code: Access) -> None:
    view = slot()
    mailbox.encode_long_touches(view, [Touch(0x0234_5678, code, 0x98BA_DCFE)])
    start = mailbox.touch_offset(0)
    record = bytes(view[start : start + lib.GUEST_TOUCH_SIZE])
    access, store = ACCESSES[code]
    assert record[:8] == bytes.fromhex(access) + bytes.fromhex("78563402")
    width = image.WIDTHS[code]
    if store:
        result = lib.GUEST_TOUCH_RESULTS.to_bytes(4, "little")
        assert record[8:] == bytes.fromhex(store) + result
    else:
        value = bytes.fromhex("fedcba98")[:width]
        assert record[8:] == value + b"\x3e" * (7 - width) + b"\x90"


def test_the_end_record_jumps_into_the_image() -> None:
    view = slot()
    mailbox.encode_long_touches(view, [])
    start = mailbox.touch_offset(0)
    record = bytes(view[start : start + 7])
    assert (record[0], record[5:]) == (0xB8, b"\xff\xe0")  # mov eax, offset; jmp rax
    end = int.from_bytes(record[1:5], "little")
    code = image.code()
    assert code[end : end + 2] == bytes((0xE6, image.END_PORT))
    assert {code[at] for at in image.LONG_SWEEPS} == {0xF3, 0x66}  # rep, and an operand of 16 bits


def test_the_guests_slot_is_at_address_0_and_nothing_else_is_mapped() -> None:
    view = slot()
    windows = Windows(view, SLOT_GPA)
    for offset in range(0, lib.GUEST_SLOT_SIZE, 0x1000):
        assert translate(view, windows.cr3, offset) == SLOT_GPA + offset
    assert translate(view, windows.cr3, lib.GUEST_SLOT_SIZE) is None
    assert translate(view, windows.cr3, 1 << 22) is None


@given(st.lists(GPAS, min_size=1, max_size=20))
def test_every_gpa_has_an_address_and_all_stay_true(gpas: list[int]) -> None:
    view = slot()
    windows = Windows(view, SLOT_GPA)
    addresses = [windows.address(gpa) for gpa in gpas]
    for gpa, address in zip(gpas, addresses, strict=True):
        assert translate(view, windows.cr3, address) == gpa
        assert windows.address(gpa) == address < 1 << 31


@given(GPAS.filter(lambda gpa: gpa < (1 << 52) - WINDOW_STEP_BYTES))
def test_what_follows_an_address_follows_the_gpa(gpa: int) -> None:
    view = slot()
    windows = Windows(view, SLOT_GPA)
    address = windows.address(gpa)
    for distance in (1, 3, 0x3FFF, WINDOW_STEP_BYTES - 1):
        assert translate(view, windows.cr3, address + distance) == gpa + distance


def test_no_entry_is_changed_once_it_is_there() -> None:
    view = slot()
    windows = Windows(view, SLOT_GPA)
    entries = range(lib.GUEST_PAGE_TABLES, lib.GUEST_SLOT_SIZE, 8)
    for number in range(WINDOWS):
        before = bytes(view)
        windows.address(number * WINDOW_STEP_BYTES)
        assert all(
            before[at : at + 8] == bytes(8) or before[at : at + 8] == bytes(view[at : at + 8])
            for at in entries
        )


def test_windows_run_out_and_say_so() -> None:
    windows = Windows(slot(), SLOT_GPA)
    for number in range(WINDOWS):
        windows.address(number * WINDOW_STEP_BYTES)
    with pytest.raises(NoWindowError):
        windows.address(WINDOWS * WINDOW_STEP_BYTES)
    assert windows.address(0) == lib.GUEST_WINDOW_SIZE


def test_tables_are_made_anew_for_another_vm() -> None:
    view = slot()
    Windows(view, SLOT_GPA).address(1 << 40)
    windows = Windows(view, SLOT_GPA)
    assert translate(view, windows.cr3, lib.GUEST_WINDOW_SIZE) is None
