"""The dirty bitmap and the counts of large pages are read from memory, which these tests make."""

from struct import pack, pack_into

import pytest

from tests.kernelheld import ARRAY_LAYOUT, LAYOUT, Memory, held
from vmm.scenario.kernelslots import KernelSlot
from vmm.whitebox.layout import Layout
from vmm.whitebox.reader import Reader
from vmm.whitebox.state import MOST_DIRTY_PAGES, read_state

VM, BITMAP, SMALL, LARGE, RMAPS = 0x10000, 0x30000, 0x40000, 0x50000, 0x60000


def slot(layout: Layout, npages: int, *, is_logged: bool) -> bytes:
    data = bytearray(layout.slot_size)
    pack_into("<QQ", data, layout.slot_base_gfn, 0x1FF, npages)
    pack_into("<Q", data, layout.slot_dirty_bitmap, BITMAP * is_logged)
    pack_into("<QQ", data, layout.slot_lpage_info, SMALL, LARGE)
    pack_into("<QQQ", data, layout.slot_rmap, RMAPS, RMAPS + 0x1000, 0)
    pack_into("<h", data, layout.slot_id, 5)
    return bytes(data)


@pytest.mark.parametrize("layout", [LAYOUT, ARRAY_LAYOUT])
def test_all_is_read(layout: Layout) -> None:
    memory = bytearray(1 << 20)
    pack_into("<QQ", memory, BITMAP, 1 | 1 << 63, 1 << 5)
    pack_into("<50I", memory, SMALL, *range(50))
    pack_into("<I", memory, LARGE, 1 << 31 | 3)
    pack_into("<Q", memory, RMAPS + 8 * 15, 1)
    pack_into("<Q", memory, RMAPS + 8 * 20, 1)
    pack_into("<Q", memory, RMAPS + 8 * 99, 0xFFFF_8880_0000_0001)
    pack_into("<I", memory, VM + layout.kvm_indirect_shadow_pages, 2)

    def read(address: int, size: int) -> bytes:
        return bytes(memory[address : address + size])

    found = read_state(read, layout, VM, slot(layout, 100, is_logged=True))
    assert (found.slot_id, found.has_bitmap, found.dirty) == (5, True, (0, 63, 69))
    assert found.large == (((0, 0), (1, 1)), ((0, 3),))
    assert found.rmaps == ((15, 99), (), None)
    assert found.is_shadowing
    long = read_state(read, layout, VM, slot(layout, MOST_DIRTY_PAGES + 1, is_logged=True))
    assert (long.has_bitmap, long.dirty) == (True, None)
    ends = [*range(16), *range(49, 65)]
    assert [index for index, _ in long.large[0]] == ends
    bare = read_state(read, layout, VM, slot(layout, 1, is_logged=False))
    assert (bare.has_bitmap, bare.dirty, bare.large[0]) == (False, (), ((0, 0),))


def test_the_state_is_that_of_the_slot_that_was_asked_for() -> None:
    slots = [KernelSlot(number, 0, 0x100 * number, 2, 0x7F00_0000_0000, 0) for number in (3, 4)]
    memory = Memory(held(slots, 6, 8))
    pack_into("<Q", memory.data, memory.slot_address(1) + LAYOUT.slot_dirty_bitmap, BITMAP)
    memory.data[BITMAP : BITMAP + 8] = pack("<Q", 2)
    reader = Reader(memory.read, LAYOUT, 0x1000, memory.pid)
    found = {}
    for number in (3, 4, 5):
        kernel = reader.slots(0, 6, number)
        assert kernel is not None
        found[number] = kernel.changed
    assert found[3] is not None
    assert not found[3].has_bitmap
    assert found[4] is not None
    assert found[4].dirty == (1,)
    assert found[5] is None
