"""The array of Linux 5.7 to 5.16 is read from memory, which these tests make."""

from struct import pack_into

import pytest

from tests.kernelheld import ARRAY_LAYOUT as AT, VM_LIST, held_array
from vmm.scenario.kernelslots import KernelArray, KernelSlot
from vmm.whitebox.reader import Reader
from vmm.whitebox.reading import MOST_SLOTS

PID = 77
VM, SET = 0x10000, 0x20000
SLOTS = [
    KernelSlot(n * 3, 0, 0x100 * n, n + 1, 0x7F00_0000_0000 - 0x10000 * n, 1) for n in range(9)
]


class Memory:
    """A kernel's memory with one VM."""

    def __init__(self, kernel: KernelArray) -> None:
        self.data = bytearray(1 << 19)
        pack_into("<Q", self.data, VM_LIST, VM + AT.kvm_vm_list)
        pack_into("<Q", self.data, VM + AT.kvm_vm_list, VM_LIST)
        pack_into("<i", self.data, VM + AT.kvm_userspace_pid, PID)
        pack_into("<Q", self.data, VM + AT.kvm_memslots, SET)
        pack_into("<Q", self.data, SET + AT.set_generation, kernel.generation)
        pack_into("<ii", self.data, SET + AT.set_lru_slot, kernel.lru_slot, kernel.used_slots)
        for number in range(AT.set_ids):
            self.index(number, -1)
        for number, index in kernel.id_to_index:
            self.index(number, index)
        for index, slot in enumerate(kernel.slots):
            at = SET + AT.set_entries + index * AT.slot_size
            pack_into("<QQ", self.data, at + AT.slot_base_gfn, slot.base_gfn, slot.npages)
            pack_into("<Q", self.data, at + AT.slot_userspace_addr, slot.userspace_addr)
            pack_into("<IhH", self.data, at + AT.slot_flags, slot.flags, slot.slot_id, slot.as_id)

    def index(self, number: int, index: int) -> None:
        """Write an entry of id_to_index."""
        pack_into("<h", self.data, SET + AT.set_id_to_index + 2 * number, index)

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of it. Raises OSError."""
        if address < 0x1000 or address + size > len(self.data):
            raise OSError(f"the kernel has no memory at {address:#x}")
        return bytes(self.data[address : address + size])


def read(memory: Memory) -> KernelArray:
    reader = Reader(memory.read, AT, VM_LIST, PID)
    before = reader.generation(0)
    assert before is not None
    found = reader.slots(0, before, -1)
    assert isinstance(found, KernelArray)
    return found


@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_whole_array_is_read(count: int) -> None:
    kernel = held_array(SLOTS[:count], 6, 6, lru_slot=count // 2)
    assert read(Memory(kernel)) == kernel


def test_indexes_that_should_not_be_there_are_read_too() -> None:
    memory = Memory(held_array(SLOTS, 6, 6))
    memory.index(500, 3)
    assert (500, 3) in read(memory).id_to_index
    memory.index(3, -1)
    found = read(memory).id_to_index
    assert (500, 3) in found
    assert 3 not in dict(found)


def test_a_count_below_zero_is_read_as_it_is() -> None:
    memory = Memory(held_array([], 6, 6))
    pack_into("<i", memory.data, SET + AT.set_used_slots, -1)
    assert read(memory).used_slots == -1


def test_too_many_entries_are_not_read() -> None:
    memory = Memory(held_array([], 6, 6))
    pack_into("<i", memory.data, SET + AT.set_used_slots, MOST_SLOTS + 1)
    assert Reader(memory.read, AT, VM_LIST, PID).slots(0, 6, -1) is None
