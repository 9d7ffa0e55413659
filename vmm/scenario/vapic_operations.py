"""Operations by which KVM keeps what concerns a vCPU's interrupts in guest memory, as data."""

from typing import Literal

from vmm.scenario.operation import Hex, Operation

PageMsr = Literal["pv_eoi", "assist_page", "async_pf"]
"""MSRs that name guest memory where a vCPU and KVM tell each other of interrupts."""

PAGE_MSR_STEPS: dict[PageMsr, int] = {
    "pv_eoi": 2,
    "assist_page": 0x1000,
    "async_pf": 64,
}
"""The lowest bits enable an MSR, or mean nothing."""
_ENABLED, _AS_AN_INTERRUPT = 1 << 0, 1 << 3


class SetVapicAddr(Operation, frozen=True, tag="set_vapic_addr", gc=False):
    """KVM_SET_VAPIC_ADDR: a vCPU's task priority is in guest memory at ``gpa``; 0: nowhere.

    Its lowest byte is the priority, which KVM reads whenever the vCPU has run; before that it
    writes all four bytes if the local APIC is enabled. Both are of as_id 0.

    >>> from vmm import operations
    >>> operations.SetVapicAddr(0x100400).vcpu
    0
    """

    gpa: Hex
    vcpu: int = 0


class SetApic(Operation, frozen=True, tag="set_apic", gc=False):
    """KVM_SET_LAPIC: a vCPU's local APIC is enabled by software, or not, and has a ``priority``.

    The task priority (TPR) stays as it is, without one.

    >>> from vmm import operations
    >>> operations.SetApic(priority=0x30).enabled
    True
    """

    enabled: bool = True
    priority: Hex | None = None
    vcpu: int = 0


class SetPageMsr(Operation, frozen=True, tag="set_page_msr", gc=False):
    """KVM_SET_MSRS on a vCPU: an MSR that names guest memory.

    MSR_KVM_PV_EOI_EN and Hyper-V's HV_X64_MSR_VP_ASSIST_PAGE say where an interrupt's end is told,
    MSR_KVM_ASYNC_PF_EN where asynchronous page faults are (delivered as an interrupt). KVM clears
    the first four bytes of an assist page at once.

    >>> from vmm import operations
    >>> operations.SetPageMsr("assist_page", gpa=0x101000).on
    True
    """

    msr: PageMsr
    gpa: Hex
    on: bool = True
    vcpu: int = 0


def enabling_bits(msr: PageMsr) -> int:
    """Return the bits beside the gpa that enable an MSR."""
    return _ENABLED | _AS_AN_INTERRUPT if msr == "async_pf" else _ENABLED


VapicOperation = SetVapicAddr | SetApic | SetPageMsr
