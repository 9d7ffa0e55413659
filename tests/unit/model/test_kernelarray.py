"""The kernel's array is held against the model's: what is right passes, each fault is found."""

import msgspec
import pytest

from tests.kernelheld import held_array
from vmm.model.array import Change, MemslotArray
from vmm.model.heldslots import HeldSlots
from vmm.model.kernelarray import array_flaw
from vmm.model.regions import Memslot
from vmm.scenario.kernelslots import KernelArray, KernelSlot
from vmm.scenario.operations import Place

BASE = 0x7F00_0000_0000
COUNT = 7
INTERNAL = KernelSlot(510, 0, 0x1D00, 3, 0x7E00_0000_0000, 0)


def wanted() -> MemslotArray[Memslot]:
    array: MemslotArray[Memslot] = MemslotArray()
    for number in range(COUNT):
        hva = Place("ram", 0x4000 * number)
        slot = Memslot(number, 0x1000 - 0x10 * number, 2, hva, number % 2)
        array.update(slot, Change.CREATE)
    return array


SLOTS = [KernelSlot(n, 0, 0x1000 - 0x10 * n, 2, BASE + 0x4000 * n, n % 2) for n in range(COUNT)]
RIGHT = held_array(SLOTS, 2, 4, lru_slot=3)


def flaw_of(kernel: KernelArray) -> str:
    found = array_flaw(kernel, wanted(), HeldSlots(508))
    return found.observed if found else ""


def test_what_is_right_passes() -> None:
    assert flaw_of(RIGHT) == ""
    assert array_flaw(held_array([], 2, 4), MemslotArray(), HeldSlots(508)) is None


def test_slots_of_the_kernels_own_have_their_places() -> None:
    assert flaw_of(held_array([*SLOTS, INTERNAL], 2, 4)) == ""
    low = msgspec.structs.replace(INTERNAL, base_gfn=0x10)
    assert flaw_of(held_array([*SLOTS, low], 2, 4)) == ""


def entries(*slots: KernelSlot) -> KernelArray:
    indexes = tuple(sorted((slot.slot_id, at) for at, slot in enumerate(slots)))
    return msgspec.structs.replace(RIGHT, slots=slots, used_slots=len(slots), id_to_index=indexes)


def changed(number: int, **fields: int) -> KernelArray:
    slots = [msgspec.structs.replace(s, **fields) if s.slot_id == number else s for s in SLOTS]
    return entries(*slots)


INDEXES = dict(RIGHT.id_to_index)


@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        (msgspec.structs.replace(RIGHT, used_slots=6), "used_slots is 6"),
        (msgspec.structs.replace(RIGHT, used_slots=-1), "used_slots is -1"),
        (msgspec.structs.replace(RIGHT, lru_slot=7), "lru_slot is 7, and used_slots 7"),
        (entries(SLOTS[1], SLOTS[0], *SLOTS[2:]), "comes after slot 1 at gfn 0xff0"),
        (entries(*SLOTS[1:]), "the slots are 1, 2, 3, 4, 5, 6"),
        (entries(*SLOTS, KernelSlot(9, 0, 1, 1, 0, 0)), "the slots are 0, 1, 2, 3, 4, 5, 6, 9"),
        (entries(*SLOTS[:3], SLOTS[2], *SLOTS[3:]), "comes after slot 2"),
        (changed(2, npages=1), "slot 2: npages is 0x1, not 0x2"),
        (changed(2, base_gfn=0xFE2), "slot 2: base_gfn is 0xfe2, not 0xfe0"),
        (changed(3, flags=0), "slot 3: flags is 0x0, not 0x1"),
        (changed(3, as_id=1), "slot 3: as_id is 0x1, not 0x0"),
        (changed(6, userspace_addr=BASE), "slot 6: userspace_addr"),
    ],
)  # fmt: skip
def test_each_fault_of_an_entry_is_found(kernel: KernelArray, told: str) -> None:
    assert told in flaw_of(kernel)


@pytest.mark.parametrize(
    ("indexes", "told"),
    [
        (INDEXES | {2: 3}, "id_to_index[2] is 3, not 2"),
        (INDEXES | {100: 3}, "id_to_index[100] is 3, not -1"),
        ({n: at for n, at in INDEXES.items() if n != 4}, "id_to_index[4] is -1, not 4"),
    ],
)
def test_each_fault_of_the_table_is_found(indexes: dict[int, int], told: str) -> None:
    kernel = msgspec.structs.replace(RIGHT, id_to_index=tuple(sorted(indexes.items())))
    assert flaw_of(kernel) == told
