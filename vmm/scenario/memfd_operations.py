"""Operations on guest_memfds and on memory attributes, as data."""

from typing import Literal

from vmm.scenario.operation import Hex, Operation

MEMFD_MMAP = 1 << 0
MEMFD_INIT_SHARED = 1 << 1
KEEP_SIZE, PUNCH_HOLE = 1 << 0, 1 << 1
ZERO_RANGE, UNSHARE_RANGE = 1 << 4, 1 << 6
"""Modes of fallocate(2) that the kernel hands on to the file, which knows neither."""

ATTRIBUTE_PRIVATE = 1 << 3


class CreateGuestMemfd(Operation, frozen=True, tag="create_guest_memfd", gc=False):
    """KVM_CREATE_GUEST_MEMFD: create a file of ``size`` bytes that the scenario calls ``name``.

    >>> from vmm import operations
    >>> operations.CreateGuestMemfd("g", size=0x2000).size // 4096
    2
    """

    name: str
    size: Hex
    flags: Hex = 0


class CloseGuestMemfd(Operation, frozen=True, tag="close_guest_memfd", gc=False):
    """Close a guest_memfd; mappings of it and slots that bind it stay.

    >>> from vmm import operations
    >>> operations.CloseGuestMemfd("g").name
    'g'
    """

    name: str


class MapGuestMemfd(Operation, frozen=True, tag="map_guest_memfd", gc=False):
    """Map a guest_memfd from its start over ``mapping``, and tag its pages if the host may write.

    The host may if the file was created with GUEST_MEMFD_FLAG_INIT_SHARED.

    >>> from vmm import operations
    >>> operations.MapGuestMemfd("g", mapping="a").sharing
    'shared'
    """

    name: str
    mapping: str
    sharing: Literal["shared", "private"] = "shared"


class PunchGuestMemfd(Operation, frozen=True, tag="punch_guest_memfd", gc=False):
    """fallocate(2) with FALLOC_FL_PUNCH_HOLE: the host removes pages from a guest_memfd.

    ``offset`` and ``size`` are in bytes; ``keep_size`` adds FALLOC_FL_KEEP_SIZE. Without ``punch``,
    FALLOC_FL_PUNCH_HOLE is left out: the host allocates the pages that are missing. ``others`` are
    other bits of the mode, none of which a guest_memfd knows.

    >>> from vmm import operations
    >>> operations.PunchGuestMemfd("g", offset=0x1000, size=0x1000).keep_size
    True
    """

    name: str
    offset: Hex
    size: Hex
    keep_size: bool = True
    punch: bool = True
    others: Hex = 0

    @property
    def mode(self) -> int:
        """The bits that fallocate(2) gets."""
        return self.others | KEEP_SIZE * self.keep_size | PUNCH_HOLE * self.punch


class ResizeGuestMemfd(Operation, frozen=True, tag="resize_guest_memfd", gc=False):
    """ftruncate(2) of a guest_memfd, whose size is fixed.

    >>> from vmm import operations
    >>> operations.ResizeGuestMemfd("g", size=0x2000).size // 4096
    2
    """

    name: str
    size: Hex


class SetMemoryAttributes(Operation, frozen=True, tag="set_memory_attributes", gc=False):
    """KVM_SET_MEMORY_ATTRIBUTES, field by field.

    >>> from vmm import operations
    >>> operations.SetMemoryAttributes(0x100000, 0x1000, attributes=1 << 3).size  # Private.
    4096
    """

    address: Hex
    size: Hex
    attributes: Hex = 0
    flags: Hex = 0


MemfdOperation = (
    CreateGuestMemfd | CloseGuestMemfd | MapGuestMemfd | PunchGuestMemfd | ResizeGuestMemfd
)
