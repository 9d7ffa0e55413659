"""What the kernel's array of memslots must be after a region operation (Linux 5.7 to 5.16).

It equals the model's array, index for index. Internal slots, whose ids are above the user's last
one, are not in the model's array; the kernel sorts them in by gfn.
"""

from itertools import pairwise

from vmm.model.array import MemslotArray
from vmm.model.heldslots import HeldSlots
from vmm.model.kernelslots import KernelFlaw
from vmm.model.regions import Memslot
from vmm.model.rule import source
from vmm.scenario.kernelslots import KernelArray

KERNEL_ARRAY = source(
    "kernel-array",
    "the kernel's array of memslots has used_slots entries, from the highest base_gfn to the "
    "lowest, id_to_index has the index of each, and -1 for every other id, and lru_slot is the "
    "index of one of them, or 0",
    "0577d1abe704; 0774a964ef56; update_memslots",
)


def array_flaw(
    kernel: KernelArray, wanted: MemslotArray[Memslot], held: HeldSlots
) -> KernelFlaw | None:
    """Return what is wrong with the kernel's array, which must hold ``wanted``."""
    observed = (
        _entries_flaw(kernel, wanted, held) or _indexes_flaw(kernel) or _model_flaw(kernel, wanted)
    )
    if not observed:
        return None
    ids = ", ".join(f"{slot.slot_id}" for slot in wanted) or "none"
    expected = f"used_slots {wanted.used_slots}, and from the front the slots: {ids}"
    return KernelFlaw(KERNEL_ARRAY, expected, observed)


def _entries_flaw(kernel: KernelArray, wanted: MemslotArray[Memslot], held: HeldSlots) -> str:
    """Check each entry in use, and their order."""
    if kernel.used_slots != len(kernel.slots):
        return f"used_slots is {kernel.used_slots}"
    for one, other in pairwise(kernel.slots):
        if one.base_gfn < other.base_gfn + other.npages:
            return (
                f"slot {other.slot_id} at gfn {other.base_gfn:#x} with {other.npages} pages comes "
                f"after slot {one.slot_id} at gfn {one.base_gfn:#x}"
            )
    users = held.users(list(kernel.slots))
    ids = [slot.slot_id for slot in users]
    if ids != [slot.slot_id for slot in wanted]:
        return f"the slots are {', '.join(map(str, ids)) or 'none'}"
    for slot, expected in zip(users, wanted, strict=True):
        flaw = held.flaw(kernel.as_id, slot, expected)
        if flaw:
            return f"slot {slot.slot_id}: {flaw}"
    if kernel.lru_slot not in range(max(kernel.used_slots, 1)):
        return f"lru_slot is {kernel.lru_slot}, and used_slots {kernel.used_slots}"
    return ""


def _indexes_flaw(kernel: KernelArray) -> str:
    """Check that entries and id_to_index agree, internal slots included."""
    indexes = dict(kernel.id_to_index)
    for index, slot in enumerate(kernel.slots):
        found = indexes.pop(slot.slot_id, -1)
        if found != index:
            return f"id_to_index[{slot.slot_id}] is {found}, not {index}"
    for slot_id, index in indexes.items():
        return f"id_to_index[{slot_id}] is {index}, not -1"
    return ""


def _model_flaw(kernel: KernelArray, wanted: MemslotArray[Memslot]) -> str:
    """Check the indexes against the model, if there are no internal slots."""
    if kernel.used_slots != wanted.used_slots:
        return ""
    for slot_id, index in kernel.id_to_index:
        expected = wanted.id_to_index(slot_id)
        if index != expected:
            return f"id_to_index[{slot_id}] is {index}, not {expected}"
    return ""
