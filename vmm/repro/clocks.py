"""C statements for the clocks that KVM writes to guest memory."""

from vmm.repro.account import Account
from vmm.repro.cnames import unsigned
from vmm.repro.expectations import Expectation
from vmm.scenario.clocks import LAYOUTS
from vmm.scenario.history import Inspected, MsrsSet, Refused
from vmm.scenario.operations import Clock, SetClockMsr

_MSRS: dict[Clock, str] = {
    "wall_clock": "MSR_KVM_WALL_CLOCK_NEW",
    "system_time": "MSR_KVM_SYSTEM_TIME_NEW",
    "steal_time": "MSR_KVM_STEAL_TIME",
}


def set_clock(account: Account, op: SetClockMsr, step: Expectation) -> list[str]:
    """Return the statements of KVM_SET_MSRS, and of the check of how many MSRs it set."""
    account.use("setclock")
    enable = " | KVM_MSR_ENABLED" if op.clock != "wall_clock" else ""
    data = f"{unsigned(op.gpa)}{enable}" if op.on else "0"
    return msrs_checked(account, f"set_msr({op.vcpu}, {_MSRS[op.clock]}, {data})", step)


def msrs_checked(account: Account, call: str, step: Expectation) -> list[str]:
    """Return a call of KVM_SET_MSRS, and the check of how many MSRs it sets."""
    numbers = [_number(each.outcome) for each in step.allowed]
    if len(numbers) < 2:
        return [f"expect_msrs({call}, {number});" for number in numbers] or [f"(void){call};"]
    chosen = numbers[0] if step.chosen is None else _number(step.chosen)
    account.use("thisnumber")
    return [f"expect_this_number({call}, {chosen});"]


def _number(outcome: object) -> int:
    assert isinstance(outcome, MsrsSet | Refused)
    return outcome.number if isinstance(outcome, MsrsSet) else -1


def clock_writes(account: Account, look: Inspected) -> list[str]:
    """Return what KVM must have written, or may have, since host memory was last compared."""
    lines = []
    for write in look.due:
        account.use("due")
        name = account.names.variable(write.mapping)
        at = LAYOUTS[write.clock].version
        stopped = "true" if write.stopped else "false"
        lines.append(f"expect_clock({name}, {write.offset:#x}, {at}, {stopped});")
    for mapping, offset, size in look.room:
        account.use("room")
        lines.append(f"may_change({account.names.variable(mapping)}, {offset:#x}, {size});")
    return lines
