"""Finds out whether KVM emulates an instruction on request, by letting a guest try."""

from pathlib import Path

from vmm.execution.probe.reach import tried
from vmm.execution.probe.touches import is_fault, wrong_touch
from vmm.scenario.features import Features
from vmm.scenario.history import Ran, Stopped
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    Instruction,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
)

_PARAMETER = Path("/sys/module/kvm/parameters/force_emulation_prefix")
_GPA = 0x10_0000


def emulates_on_request(time_limit_s: float) -> bool:
    """Whether KVM looks for the prefix that asks for emulation, and this backend honours it.

    The parameter is a number; Y or N in older kernels. If a backend never sees the prefix, the
    guest gets #UD, and stops.
    """
    try:
        value = _PARAMETER.read_text().strip()
    except OSError:
        return False
    return value not in ("0", "N") and _tries(time_limit_s)


def _tries(time_limit_s: float) -> bool:
    scenario = Scenario(
        name="forced-emulation",
        survey="none",
        mappings=(Mapping("a", 1),),
        operations=(
            SetUserMemoryRegion(0, _GPA, PAGE_SIZE_BYTES, Place("a")),
            Instruction("lock-xadd", _GPA, value=1, forced=True),
        ),
    )
    for outcome in tried(scenario, Features(forced_emulation=True), time_limit_s):
        match outcome:
            case Ran():
                return True
            case Stopped() if not is_fault(outcome):
                raise wrong_touch(
                    outcome, f"the guest executes lock xadd at gpa {_GPA:#x}, in a slot"
                )
    return False
