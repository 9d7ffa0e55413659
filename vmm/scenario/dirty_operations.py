"""Dirty logs and dirty rings, as data."""

from typing import Literal

from kvm_abi.uapi import DIRTY_LOG_PAGE_OFFSET
from vmm.scenario.operation import Operation

FIRST_RING_PAGE = DIRTY_LOG_PAGE_OFFSET
"""Where a dirty ring begins in the file of its vCPU, in pages."""

RING_ENTRY_BYTES = 16


class GetDirtyLog(Operation, frozen=True, tag="get_dirty_log", gc=False):
    """KVM_GET_DIRTY_LOG. ``bitmap`` says whether the kernel may write the bitmap.

    >>> from vmm import operations
    >>> operations.GetDirtyLog(slot=1 << 16).bitmap  # Slot 0 of as_id 1.
    'writable'
    """

    slot: int
    bitmap: Literal["writable", "unwritable"] = "writable"


class ClearDirtyLog(Operation, frozen=True, tag="clear_dirty_log", gc=False):
    """KVM_CLEAR_DIRTY_LOG for ``num_pages`` pages from ``first_page`` on.

    ``pages`` are those whose bits are set, counted from the start of the slot; ``all`` sets every
    bit of the bitmap, those beyond the last page included. ``bitmap`` says whether the kernel may
    read it.

    >>> from vmm import operations
    >>> operations.ClearDirtyLog(slot=1, first_page=64, num_pages=64, pages=(0, 5)).pages
    (0, 5)
    """

    slot: int
    first_page: int = 0
    num_pages: int = 0
    pages: Literal["all"] | tuple[int, ...] = "all"
    bitmap: Literal["readable", "unreadable"] = "readable"


class HarvestDirtyRing(Operation, frozen=True, tag="harvest_dirty_ring", gc=False):
    """The host reads a vCPU's dirty ring, and marks its entries as harvested.

    When a vCPU stops at a full ring, the executor harvests and resets that ring at once. What it
    found is part of the next harvest.

    >>> from vmm import operations
    >>> operations.HarvestDirtyRing(vcpu=1).vcpu
    1
    """

    vcpu: int = 0


class ResetDirtyRings(Operation, frozen=True, tag="reset_dirty_rings", gc=False):
    """KVM_RESET_DIRTY_RINGS: the kernel tracks the harvested pages again.

    >>> from vmm import operations
    >>> operations.ResetDirtyRings(expect="EINVAL").expect  # Where no ring was enabled.
    'EINVAL'
    """


class MapVcpuPages(Operation, frozen=True, tag="map_vcpu_pages", gc=False):
    """mmap(2) of ``pages`` pages of a vCPU's file, read only, which are unmapped again at once.

    Its dirty ring is in that file, from page 64 on.

    >>> from vmm import operations
    >>> operations.MapVcpuPages(first_page=64, sharing="private").pages
    1
    """

    first_page: int = 0
    pages: int = 1
    sharing: Literal["shared", "private"] = "shared"
    executable: bool = False
    vcpu: int = 0


DirtyOperation = GetDirtyLog | ClearDirtyLog | HarvestDirtyRing | ResetDirtyRings | MapVcpuPages
