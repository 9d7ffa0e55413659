"""What a scenario takes of the host's memory, so that it can be looked at before it is taken."""

from vmm.scenario.operations import PAGE_SIZE_BYTES, Scenario, SetUserMemoryRegion, pages_of
from vmm.scenario.slots import MAX_PAGES

_COPIES = 3
"""A page that is declared, what it held at the last look, and what is compared with that."""

_SLOT_BYTES = 24 << 10
"""What a kernel without TDP keeps for the smallest slot: five arrays, each in pages of its own."""

_SLOT_PAGE_BYTES = 16
"""What a kernel keeps for each page of a slot: its reverse map and its log, and some more."""

_OPERATION_BYTES = 1 << 10
"""An operation with its events, here and there."""

_PROCESS_BYTES = 32 << 20
"""The process that carries a scenario out."""


def memory_bytes(scenario: Scenario) -> int:
    """Return what carrying out and judging a scenario takes at most, roughly."""
    mapped = sum(
        mapping.pages
        for mapping in scenario.mappings
        if mapping.kind not in ("unmapped", "guest_memfd", "hugetlb")
    )
    slots: dict[int, int] = {}
    for operation in scenario.operations:
        if isinstance(operation, SetUserMemoryRegion):
            pages = pages_of(operation.memory_size)
            if pages <= MAX_PAGES:
                slots[operation.slot] = max(slots.get(operation.slot, 0), pages)
    return (
        mapped * PAGE_SIZE_BYTES * _COPIES
        + len(slots) * _SLOT_BYTES
        + sum(slots.values()) * _SLOT_PAGE_BYTES
        + len(scenario.operations) * _OPERATION_BYTES
        + _PROCESS_BYTES
    )


def short_of_memory(scenario: Scenario, free_bytes: int) -> str:
    """Return what memory a scenario needs and does not find, as a phrase; empty if it does."""
    needed = memory_bytes(scenario)
    if needed <= free_bytes:
        return ""
    return f"{-(-needed >> 20)} MiB of free memory (here {free_bytes >> 20} MiB are free)"
