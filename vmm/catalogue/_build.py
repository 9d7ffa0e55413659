"""Helpers that scenarios are written with: slots, and shorthands for touches.

Places are in pages here (gfns and page numbers), as one thinks of memslots; calls that are refused
for not being page aligned are written with ``but``.
"""

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    SLOT_ZAP_ALL,
    AnyOperation,
    AsId,
    EnableCap,
    GetDirtyLog,
    Hva,
    Mapping,
    Place,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Touch,
)

A = Mapping("a", 8)
B = Mapping("b", 8)
HUGE = Mapping("huge", 1024, "thp")
ZERO = Mapping("zero", 4, "zero")
NOWHERE = Mapping("nowhere", 8, "unmapped")

API = "api.rst 4.35 KVM_SET_USER_MEMORY_REGION"
API_DIRTY = "api.rst 4.8 KVM_GET_DIRTY_LOG"
API_MMIO = "api.rst 5, KVM_EXIT_MMIO"
STALE_SLOT = "12d6e7538e2d, e40f193f5bb0 (CVE-2013-4592)"

WITHOUT_ZAP_ALL = EnableCap("DISABLE_QUIRKS2", SLOT_ZAP_ALL)
"""Deletions and moves zap the pages of their slot alone from then on."""

R = TypeVar("R", bound=SetUserMemoryRegion)


def at(mapping: str, page: int = 0) -> Place:
    """Return the hva of a page of a mapping."""
    return Place(mapping, page * PAGE_SIZE_BYTES)


@dataclass(frozen=True, slots=True)
class Slot:
    """A memslot of a scenario; its methods are the calls on it."""

    slot: int
    gfn: int
    hva: Hva
    pages: int = 1
    flags: int = 0

    def create(self) -> SetUserMemoryRegion:
        """Set the slot with these values: a creation, or a nop if it already has them."""
        return SetUserMemoryRegion(
            slot=self.slot,
            guest_phys_addr=self.gfn * PAGE_SIZE_BYTES,
            memory_size=self.pages * PAGE_SIZE_BYTES,
            userspace_addr=self.hva,
            flags=self.flags,
        )

    def move(self, gfn: int, flags: int | None = None) -> SetUserMemoryRegion:
        """Set the slot at another gfn, with other flags if given."""
        return Slot(
            self.slot, gfn, self.hva, self.pages, self.flags if flags is None else flags
        ).create()

    def change(self, flags: int) -> SetUserMemoryRegion:
        """Set the slot at its gfn, with other flags."""
        return self.move(self.gfn, flags)

    def delete(self) -> SetUserMemoryRegion:
        """Set memory_size 0, and 0 in every field that a deletion ignores."""
        return SetUserMemoryRegion(slot=self.slot)

    def log(self) -> GetDirtyLog:
        """Read the slot's dirty log."""
        return GetDirtyLog(self.slot)


def but(
    operation: R,
    *,
    guest_phys_addr: int | None = None,
    memory_size: int | None = None,
    userspace_addr: Hva | None = None,
    flags: int | None = None,
) -> R:
    """Return a region operation with other fields, in bytes, valid or not."""
    fields = {
        "guest_phys_addr": guest_phys_addr,
        "memory_size": memory_size,
        "userspace_addr": userspace_addr,
        "flags": flags,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return msgspec.structs.replace(operation, **given)


def second_form(
    operation: SetUserMemoryRegion, guest_memfd_offset: int = 0
) -> SetUserMemoryRegion2:
    """Return the same call as KVM_SET_USER_MEMORY_REGION2."""
    return SetUserMemoryRegion2(
        slot=operation.slot,
        guest_phys_addr=operation.guest_phys_addr,
        memory_size=operation.memory_size,
        userspace_addr=operation.userspace_addr,
        flags=operation.flags,
        guest_memfd_offset=guest_memfd_offset,
    )


def read(gfn: int, offset: int = 0x100, vcpu: int = 0, as_id: AsId = 0) -> Touch:
    """Let the guest read four bytes."""
    return Touch(gfn * PAGE_SIZE_BYTES + offset, vcpu=vcpu, as_id=as_id)


def write(gfn: int, value: int, offset: int = 0x100, vcpu: int = 0, as_id: AsId = 0) -> Touch:
    """Let the guest write four bytes."""
    return Touch(gfn * PAGE_SIZE_BYTES + offset, "write", value=value, vcpu=vcpu, as_id=as_id)


def creates(*slots: Slot) -> tuple[AnyOperation, ...]:
    """Create slots in the order given."""
    return tuple(slot.create() for slot in slots)


def deletes(*slots: Slot) -> tuple[AnyOperation, ...]:
    """Delete slots in the order given."""
    return tuple(slot.delete() for slot in slots)
