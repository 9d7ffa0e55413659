"""What is measured, as data: a kind of work, and the VM in which it is done."""

from typing import Literal, get_args

import msgspec

Work = Literal[
    "create",
    "delete",
    "both",
    "pairs",
    "move",
    "flags",
    "nop",
    "run",
    "mmio",
    "dirty-log",
    "dirty-ring",
]
WORKS: tuple[Work, ...] = get_args(Work)

WORDS: dict[Work, str] = {
    "create": "KVM_SET_USER_MEMORY_REGION creates a slot",
    "delete": "KVM_SET_USER_MEMORY_REGION deletes it",
    "both": "the two in turn, each by one Vm.set_user_memory_region",
    "pairs": "the two, 16 times by one Vm.set_user_memory_regions; for once",
    "move": "KVM_SET_USER_MEMORY_REGION moves a slot",
    "flags": "KVM_SET_USER_MEMORY_REGION toggles LOG_DIRTY_PAGES",
    "nop": "KVM_SET_USER_MEMORY_REGION changes nothing",
    "run": "KVM_RUN until a port exit",
    "mmio": "KVM_RUN until an MMIO exit",
    "dirty-log": "KVM_GET_DIRTY_LOG after writes to up to 64 pages",
    "dirty-ring": "64 ring entries are harvested, and KVM_RESET_DIRTY_RINGS",
}

PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 << 20
CODE_GPA = 0x1000
WORK_GPA = 2 << 20
"""Where the slot under test lies; it must end below 4 GiB, for its guest."""

OTHER_GPA = 1 << 31
"""Where ``move`` moves it, and back."""

HOLE_GPA = 0xD000_0000
FILL_GPA = 1 << 32
"""The other slots lie from here on, one page apart."""

MAX_PAGES = 1 << 18
MAX_FILLED_PAGES = 1 << 24
"""Without TDP the kernel allocates about 10 bytes for each page of a slot at once."""

TOUCHED_PAGES = 64
PAIRS = 16
"""How often a slot is created and deleted by one call of the library."""

READINGS = 64
"""How often the clock is read to find what that takes."""

RING_BYTES = 64 << 10


class Setup(msgspec.Struct, frozen=True, order=True):
    """One measurement: the work, and how many slots, pages a slot and vCPUs the VM has.

    ``slots`` does not count the code's slot and the slot under test. ``huge`` asks for transparent
    huge pages.
    """

    work: Work
    slots: int = 8
    pages: int = 64
    vcpus: int = 1
    huge: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for what the host should not pay for, or the guest cannot reach."""
        if not 1 <= self.pages <= MAX_PAGES:
            raise ValueError(f"a slot has 1 to {MAX_PAGES} pages here, not {self.pages}")
        if not 0 <= self.slots <= MAX_FILLED_PAGES // self.pages:
            raise ValueError(
                f"{self.slots} slots of {self.pages} pages are more than "
                f"{MAX_FILLED_PAGES} pages together"
            )
        if not 1 <= self.vcpus <= 64:
            raise ValueError(f"a VM has 1 to 64 vCPUs here, not {self.vcpus}")
