"""Operations on guest_memfds, and on which gpas show them, as data."""

from typing import Literal

from vmm.scenario.operation import Hex, Operation

MEMFD_MMAP = 1 << 0
MEMFD_INIT_SHARED = 1 << 1


ATTRIBUTE_PRIVATE = 1 << 3


class CreateGuestMemfd(Operation, frozen=True, tag="create_guest_memfd", gc=False):
    """KVM_CREATE_GUEST_MEMFD: a file of ``size`` bytes that the scenario calls ``name``."""

    name: str
    size: Hex
    flags: Hex = 0


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


class PunchGuestMemfd(Operation, frozen=True, tag="punch_guest_memfd", gc=False):
    """fallocate(2) with FALLOC_FL_PUNCH_HOLE: the host takes pages out of a guest_memfd.

    ``offset`` and ``size`` are in bytes; ``keep_size`` adds FALLOC_FL_KEEP_SIZE. Without
    ``punch`` it is the opposite, without FALLOC_FL_PUNCH_HOLE: pages that are not there are made.
    """

    name: str
    offset: Hex
    size: Hex
    keep_size: bool = True
    punch: bool = True


class SetMemoryAttributes(Operation, frozen=True, tag="set_memory_attributes", gc=False):
    """KVM_SET_MEMORY_ATTRIBUTES, field by field."""

    address: Hex
    size: Hex
    attributes: Hex = 0
    flags: Hex = 0
