"""Operations on guest_memfds, as data."""

from typing import Literal

from vmm.memslots.operation import Operation

MEMFD_MMAP = 1 << 0
MEMFD_INIT_SHARED = 1 << 1


class CreateGuestMemfd(Operation, frozen=True, tag="create_guest_memfd", gc=False):
    """KVM_CREATE_GUEST_MEMFD: a file of ``size`` bytes that the scenario calls ``name``."""

    name: str
    size: int
    flags: int = 0


class CloseGuestMemfd(Operation, frozen=True, tag="close_guest_memfd", gc=False):
    """Close the file of a guest_memfd; a mapping of it stays, and so do slots."""

    name: str


class MapGuestMemfd(Operation, frozen=True, tag="map_guest_memfd", gc=False):
    """Map a guest_memfd from its start over ``mapping``, and tag its pages if the host may.

    The host may where the file was created with GUEST_MEMFD_FLAG_INIT_SHARED.
    """

    name: str
    mapping: str
    sharing: Literal["shared", "private"] = "shared"
