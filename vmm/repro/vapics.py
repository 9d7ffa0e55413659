"""C statements for what of a vCPU's interrupts is in guest memory."""

from vmm.repro.account import Account
from vmm.repro.clocks import msrs_checked
from vmm.repro.cnames import unsigned
from vmm.repro.expectations import Expectation
from vmm.scenario.operations import PageMsr, SetApic, SetPageMsr, SetVapicAddr, VapicOperation
from vmm.scenario.vapic_operations import enabling_bits

_MSRS: dict[PageMsr, str] = {
    "pv_eoi": "MSR_KVM_PV_EOI_EN",
    "assist_page": "0x40000073 /* HV_X64_MSR_VP_ASSIST_PAGE */",
    "async_pf": "MSR_KVM_ASYNC_PF_EN",
}
_AS_IT_WAS = -1


def of_vapic(account: Account, op: VapicOperation, step: Expectation) -> list[str]:
    """Return the statements of an operation."""
    match op:
        case SetVapicAddr():
            account.use("vapicaddr")
            return [account.checked(f"set_vapic_addr({op.vcpu}, {unsigned(op.gpa)})", step)]
        case SetApic():
            account.use("setapic")
            priority = _AS_IT_WAS if op.priority is None else op.priority
            call = f"set_apic({op.vcpu}, {str(op.enabled).lower()}, {priority})"
            return [account.checked(call, step)]
        case SetPageMsr():
            account.use("setclock")
            data = f"{unsigned(op.gpa)} | {enabling_bits(op.msr)}" if op.on else "0"
            return msrs_checked(account, f"set_msr({op.vcpu}, {_MSRS[op.msr]}, {data})", step)
