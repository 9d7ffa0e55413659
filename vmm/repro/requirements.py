"""What a kernel must have for a program to mean anything there: checked at its start."""

from collections.abc import Iterator
from dataclasses import dataclass

from vmm.repro.account import Account
from vmm.scenario.features import NEEDS, Features
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    Scenario,
    SetUserMemoryRegion,
    access_end,
)
from vmm.scenario.plan import reaches_beyond_real_mode


@dataclass(frozen=True, slots=True)
class _Extension:
    """A capability, by the name that <linux/kvm.h> has for it, or by its number where an older
    one has none. ``bits`` are those of the answer that are needed; 0 asks for 1 or more.
    """

    cap: str
    bits: int = 0


_EXTENSIONS = {
    "readonly_mem": _Extension("KVM_CAP_READONLY_MEM"),
    "sync_mmu": _Extension("KVM_CAP_SYNC_MMU"),
    "irqchip": _Extension("KVM_CAP_IRQCHIP"),
    "smm": _Extension("KVM_CAP_X86_SMM"),
    "user_memory2": _Extension("231"),
    "guest_memfd": _Extension("234"),
    "guest_memfd_mmap": _Extension("244", 1),
    "guest_memfd_shared": _Extension("244", 3),
    "memory_attributes": _Extension("233", 8),
    "sw_protected": _Extension("235", 2),
    "pre_fault": _Extension("236"),
    "manual_dirty_log": _Extension("168"),
    "dirty_log_initially_set": _Extension("168", 2),
    "dirty_ring_bytes": _Extension("192"),
    "dirty_ring_acq_rel": _Extension("223"),
    "slot_zap_all_quirk": _Extension("213", 1 << 7),
}
_INTERNAL = {
    "internal_tss": "TSS",
    "internal_identity": "IDENTITY_MAP",
    "internal_apic": "APIC_PAGE",
}
_BY_MAPPING = ("zero_page", "hugetlb_pages")
"""Needs without which the program cannot map its memory, and says so then."""

_SURE_GPA_END = 1 << 36
"""Every 64-bit processor has at least so many guest-physical addresses."""


def requirements(scenario: Scenario, features: Features, account: Account) -> Iterator[str]:
    """Yield the statements that end a program where its expectations do not hold."""
    for need in scenario.needs:
        yield from _need(need, account)
    if account.names_many_slots:
        yield _exactly(account, "KVM_CAP_NR_MEMSLOTS", features.nr_memslots)
    if account.names_spaces:
        yield _exactly(account, "KVM_CAP_MULTI_ADDRESS_SPACE", features.address_spaces)
    if _highest_end(scenario) > _SURE_GPA_END:
        account.use("lastgfn")
        yield f"require_last_gfn({features.last_gfn:#x}ull);"


def reach(scenario: Scenario, account: Account) -> Iterator[str]:
    """Yield the statement that tries whether a guest gets as far as the scenario's."""
    highest = max((access_end(op) for op in scenario.operations), default=0)
    if highest > REAL_MODE_END:
        account.use("reach")
        yield f"require_reach({(highest - 1) & -PAGE_SIZE_BYTES:#x}ull);"


def gpa_bits(scenario: Scenario, features: Features) -> int:
    """Return how many bits the vCPUs' addresses have; 0 where it does not matter."""
    return (features.touch_limit - 1).bit_length() if reaches_beyond_real_mode(scenario) else 0


def _need(need: str, account: Account) -> Iterator[str]:
    name = f'"{NEEDS[need]}"'
    if need in _INTERNAL:
        account.use("internal")
        yield f"require_internal({_INTERNAL[need]}, {name});"
    elif need == "failing_allocations":
        account.use("canfail")
        yield "require_failing_allocations();"
    elif need not in _BY_MAPPING:
        extension = _EXTENSIONS[need]
        if extension.bits:
            account.use("bits")
            yield f"require_bits({extension.cap}, {extension.bits}, {name});"
        else:
            account.use("require")
            yield f"require({extension.cap}, 1, {name});"


def _exactly(account: Account, cap: str, number: int) -> str:
    account.use("exactly")
    return f'require_exactly({cap}, {number}, "{cap}");'


def _highest_end(scenario: Scenario) -> int:
    """Return where the highest region ends whose place a kernel could find good."""
    ends = [
        op.guest_phys_addr + op.memory_size
        for op in scenario.operations
        if isinstance(op, SetUserMemoryRegion)
    ]
    return max(ends, default=0)
