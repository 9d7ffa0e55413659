"""Compares one slot of the kernel with that of the model, field by field; see `kernelside`."""

from vmm.model.regions import Memslot
from vmm.scenario.kernelslots import KernelSlot
from vmm.scenario.operations import GUEST_MEMFD, MEMFD_MMAP

_GMEM_ONLY = 1 << 17
"""KVM_MEMSLOT_GMEM_ONLY, since Linux 6.18: all of the slot's memory is that of its guest_memfd."""


class HeldSlots:
    """Finds the field of a kernel's slot that is wrong.

    The host address of a mapping is learned from the first slot that has it, and expected of every
    other.
    """

    def __init__(self, nr_memslots: int) -> None:
        self._nr_memslots = nr_memslots
        self._starts: dict[str, int] = {}

    def users(self, slots: list[KernelSlot]) -> list[KernelSlot]:
        """Return the user's slots, without internal ones, whose ids are above the user's last."""
        return [slot for slot in slots if slot.slot_id in range(self._nr_memslots)]

    def flaw(self, as_id: int, slot: KernelSlot, wanted: Memslot) -> str:
        """Return the first field that is wrong; empty if none is."""
        pairs = (
            ("as_id", slot.as_id, as_id),
            ("base_gfn", slot.base_gfn, wanted.base_gfn),
            ("npages", slot.npages, wanted.npages),
            ("flags", slot.flags, wanted.flags | _internal(slot, wanted)),
            ("userspace_addr", slot.userspace_addr, self._address(slot, wanted)),
        )
        for name, observed, expected in pairs:
            if observed != expected:
                return f"{name} is {observed:#x}, not {expected:#x}"
        return ""

    def _address(self, slot: KernelSlot, wanted: Memslot) -> int:
        hva = wanted.userspace_addr
        if isinstance(hva, int):
            return hva
        return self._starts.setdefault(hva.mapping, slot.userspace_addr - hva.offset) + hva.offset


def _internal(slot: KernelSlot, wanted: Memslot) -> int:
    """Return the flag that the kernel adds if a mappable guest_memfd is the only backing."""
    if wanted.memfd is None:  # It is closed, and its flags are forgotten.
        return slot.flags & _GMEM_ONLY if wanted.flags & GUEST_MEMFD else 0
    return _GMEM_ONLY if wanted.memfd.flags & MEMFD_MMAP else 0
