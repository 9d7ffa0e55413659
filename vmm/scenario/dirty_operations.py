"""Dirty logs and dirty rings, as data."""

from typing import Literal

from vmm.scenario.operation import Operation


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


DirtyOperation = GetDirtyLog | ClearDirtyLog | HarvestDirtyRing | ResetDirtyRings
