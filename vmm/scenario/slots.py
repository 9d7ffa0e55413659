"""Facts about memslots that every stage shares: limits, and the parts of a 32-bit slot number."""

MAX_SLOTS = 32764
"""The most slots that KVM lets a user have on x86; older kernels have `LEAST_SLOTS`."""

LEAST_SLOTS = 509
"""The number of slots since Linux 3.17; guests and scenarios rely on it."""

MAX_PAGES = (1 << 31) - 1
KERNEL_HALF = 1 << 63

NO_LAST_GFN = (1 << 52) - 2
"""The last gfn of a kernel without a limit: a slot that holds the next one would end at 2^64."""

USER_END = 0x7FFF_FFFF_F000
"""The end of user addresses with four page-table levels: the last page below 2^47 stays free."""


def as_id_of(slot: int) -> int:
    """Return the address space in the upper half of a 32-bit slot number."""
    return slot >> 16


def id_of(slot: int) -> int:
    """Return the slot id in the lower half of a 32-bit slot number."""
    return slot & 0xFFFF
