"""Limits of what a scenario may ask for: more is refused before anything runs."""

from vmm.scenario.operations import AnyOperation

MAX_OPERATIONS = 200_000
MAX_BEFORE_THE_END = 4
"""How many pages before the end of user addresses a slot may begin that reaches beyond it."""
MAX_MAPPINGS = 255
MAX_MAPPED_PAGES = 1 << 17
"""Filled pages of all mappings together; of a large mapping only those that are reached."""

MAX_SPARSE_PAGES = 1 << 24
"""Pages of one mapping: 64 GiB, of which only reached pages are allocated."""

MAX_SLOT_PAGES = 1 << 24
"""Pages of one slot: without TDP its metadata are allocated at once, about 10 bytes a page."""

MAX_ALL_SLOT_PAGES = 1 << 28
"""Pages of all slots that a scenario could create, summed over its operations."""

MAX_ATTRIBUTE_PAGES = 1 << 18
"""Pages of one KVM_SET_MEMORY_ATTRIBUTES: the kernel keeps an entry for each."""

MAX_ZERO_PAGES = 16
MAX_SWEEP_BYTES = 0x4000
MAX_TOUCHED_WINDOWS = 128
"""Stretches of 2 MiB at 4 GiB and above that a scenario touches besides its surveys."""

MAX_VCPUS = 8
MAX_DEVICES = 1200
"""Coalesced ranges and ioeventfds: a kernel has room for 1000 ranges."""

MAX_EVENTFDS = 16
GUEST_PORTS = range(0xE0, 0x100)
"""Ports that guests write to, which no coalesced range may take from them."""

MAX_TIMES = 10_000
MAX_FAIL_NTH = 100
NAME_LENGTH = 64
A_NAME = f"1 to {NAME_LENGTH} printable characters are needed"


def unsigned_problem(op: AnyOperation, *fields: str) -> str:
    """Return which field of an operation is not an unsigned 64-bit number; empty if all are."""
    for field in fields:
        if not 0 <= getattr(op, field) < 1 << 64:
            return f".{field}: an unsigned 64-bit number is needed"
    return ""
