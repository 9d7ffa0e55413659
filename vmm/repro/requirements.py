"""What a kernel must have for a program to be meaningful: checked when it starts."""

from collections.abc import Iterator

from kvm_abi.uapi import Cap
from vmm.repro.account import Account
from vmm.scenario.features import ROWS, Features
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    Scenario,
    SetUserMemoryRegion,
    access_end,
)
from vmm.scenario.plan import needs_cpuid

_NAMED_CAPS_END = 128
"""Capabilities from this on are written as numbers: older <linux/kvm.h> do not name them."""

_INTERNAL = {
    "internal_tss": "TSS",
    "internal_identity": "IDENTITY_MAP",
    "internal_apic": "APIC_PAGE",
}
_PARAVIRTUAL = {"kvmclock": "CLOCKSOURCE2", "steal_time": "STEAL_TIME"}
_BY_MAPPING = (
    *("zero_page", "hugetlb_pages", "collapse", "ksm", "userfaultfd", "pfnmap"),
    "process_files",
)
"""Needs that are not checked first: the program says so when it cannot use its memory."""

_SURE_GPA_END = 1 << 36
"""Every 64-bit processor has at least this many bytes of guest-physical addresses."""


def requirements(scenario: Scenario, features: Features, account: Account) -> Iterator[str]:
    """Yield the statements that end a program where its expectations do not apply."""
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
    """Yield the statement that tries whether guests reach the scenario's highest gpa."""
    highest = max((access_end(op) for op in scenario.operations), default=0)
    if highest > REAL_MODE_END:
        account.use("reach")
        yield f"require_reach({(highest - 1) & -PAGE_SIZE_BYTES:#x}ull);"


def gpa_bits(scenario: Scenario, features: Features) -> int:
    """Return the width of the vCPUs' guest-physical addresses; 0 where it does not matter."""
    return (features.touch_limit - 1).bit_length() if needs_cpuid(scenario) else 0


def _need(need: str, account: Account) -> Iterator[str]:
    row = ROWS[need]
    name = f'"{row.words}"'
    if need in _INTERNAL:
        account.use("internal")
        yield f"require_internal({_INTERNAL[need]}, {name});"
    elif need in _PARAVIRTUAL:
        account.use("paravirtual")
        yield f"require_paravirtual(KVM_FEATURE_{_PARAVIRTUAL[need]}, {name});"
    elif need == "failing_allocations":
        account.use("canfail")
        yield "require_failing_allocations();"
    elif need == "starts_32_bit":
        account.use("needs32bit")
        yield "require_starts_32_bit();"
    elif need == "forced_emulation":
        account.use("forced")
        yield "require_forced_emulation();"
    elif need not in _BY_MAPPING:
        assert row.cap is not None, f"{need} is asked for by nothing"
        if row.bits:
            account.use("bits")
            yield f"require_bits({_cap(row.cap)}, {int(row.bits)}, {name});"
        else:
            account.use("require")
            yield f"require({_cap(row.cap)}, 1, {name});"


def _cap(cap: Cap) -> str:
    return f"KVM_CAP_{cap.name}" if cap < _NAMED_CAPS_END else str(int(cap))


def _exactly(account: Account, cap: str, number: int) -> str:
    account.use("exactly")
    return f'require_exactly({cap}, {number}, "{cap}");'


def _highest_end(scenario: Scenario) -> int:
    """Return the highest end of a region that any call asks for."""
    ends = [
        op.guest_phys_addr + op.memory_size
        for op in scenario.operations
        if isinstance(op, SetUserMemoryRegion)
    ]
    return max(ends, default=0)
