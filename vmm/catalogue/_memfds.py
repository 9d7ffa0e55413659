"""Helpers for scenarios with a guest_memfd: files, slots, and the calls that bind them."""

from dataclasses import replace

import msgspec

from vmm.catalogue._area import Area
from vmm.catalogue._build import Slot, at, second_form
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    MEMFD_INIT_SHARED,
    MEMFD_MMAP,
    PAGE_SIZE_BYTES,
    AnyOperation,
    CreateGuestMemfd,
    Mapping,
    SetMemoryAttributes,
    SetUserMemoryRegion2,
)

REGION2 = "api.rst 4.140 KVM_SET_USER_MEMORY_REGION2"
CREATE = "api.rst 4.142 KVM_CREATE_GUEST_MEMFD"
SHARED = MEMFD_MMAP | MEMFD_INIT_SHARED

ORDINARY = Mapping("ordinary", 8, "memfd")
SHOWN = Mapping("shown", 8, "guest_memfd")
OTHER_SHOWN = Mapping("other-shown", 8, "guest_memfd")

ONE = Slot(1, 0x100, at("a"), pages=2)
TWO = Slot(2, 0x104, at("b"), pages=2)


def made(name: str = "g", pages: int = 8, flags: int = 0) -> CreateGuestMemfd:
    """Create a guest_memfd of some pages."""
    return CreateGuestMemfd(name, pages * PAGE_SIZE_BYTES, flags)


def bound(
    slot: Slot, page: int = 0, memfd: str = "g", offset: int | None = None
) -> SetUserMemoryRegion2:
    """Create a slot that is bound to a guest_memfd from ``page``, or a byte offset, on."""
    call = second_form(
        replace(slot, flags=slot.flags | GUEST_MEMFD).create(),
        page * PAGE_SIZE_BYTES if offset is None else offset,
    )
    return msgspec.structs.replace(call, guest_memfd=memfd)


def unbound(slot: Slot) -> AnyOperation:
    """Delete a slot with KVM_SET_USER_MEMORY_REGION2."""
    return second_form(slot.delete())


def to_private(gfn: int, pages: int = 1) -> SetMemoryAttributes:
    """Make gfns private."""
    return msgspec.structs.replace(to_shared(gfn, pages), attributes=ATTRIBUTE_PRIVATE)


def to_shared(gfn: int, pages: int = 1) -> SetMemoryAttributes:
    """Make gfns shared with the host, as all are at first."""
    return SetMemoryAttributes(gfn * PAGE_SIZE_BYTES, pages * PAGE_SIZE_BYTES)


private_vm_scenario = Area(
    tags=(), source=REGION2, needs=("user_memory2", "sw_protected"), survey="none", vm_type=1
)
"""Makes scenarios on VMs with private memory."""


memfd_scenario = Area(tags=("guest-memfd",), source=REGION2, needs=("user_memory2", "guest_memfd"))
