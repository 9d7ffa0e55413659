"""Finds out whether KVM emulates an instruction on request, by letting a guest try."""

import re
from pathlib import Path

from kvm_abi import uapi
from vmm.execution.probe.reach import tried
from vmm.execution.probe.stops import first_stop
from vmm.execution.probe.touches import is_fault, wrong_touch
from vmm.kvm.exits import InternalError
from vmm.kvm.system import Kvm
from vmm.scenario.content import STUB_OFFSET
from vmm.scenario.features import Features
from vmm.scenario.history import Ran, Stopped, Touched
from vmm.scenario.instructions import FORCE
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    ChangeHostMemory,
    HostWrite,
    Instruction,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Start,
)
from vmm.scenario.programs import ACCESSED, DIRTY, LARGE, PRESENT, WRITABLE

_FNOP_HLT = b"\xd9\xd0\xf4"
"""Of the x87 instructions KVM's emulator knows only those that store or reset its state."""

_PARAMETER = Path("/sys/module/kvm/parameters/force_emulation_prefix")
_GPA = 0x10_0000
_PREFIX = re.compile(
    rf"suberror={uapi.InternalError.EMULATION:#x} \(EMULATION\)(, data=[^,]*)?"
    rf"(, instruction={FORCE.hex()}.*)?"
)


def emulates_real_mode(kvm: Kvm) -> bool:
    """Whether KVM's emulator executes real mode, and not the processor.

    It does on Intel processors without unrestricted guest. Raises as `check_stops` does.
    """
    stop = first_stop(kvm, _FNOP_HLT)
    return isinstance(stop, InternalError) and stop.suberror == uapi.InternalError.EMULATION


def emulates_on_request(time_limit_s: float) -> bool:
    """Whether KVM looks for the prefix that asks for emulation, and this backend honours it.

    The parameter is a number; Y or N in older kernels. If a backend never sees the prefix, the
    guest gets #UD, and stops. Intel processors without unrestricted guest leave all of this mode to
    KVM's emulator, to which the prefix is no instruction.
    """
    try:
        value = _PARAMETER.read_text().strip()
    except OSError:
        return False
    return value not in ("0", "N") and _tries(time_limit_s)


def starts_in_32_bit_mode(time_limit_s: float) -> bool:
    """Whether a guest runs in 32-bit mode with page tables. kvm_pvm, which has its own, stops it.

    One entry maps 4 MiB from gpa 0 on.
    """
    scenario = Scenario(
        name="32-bit-mode",
        survey="none",
        mappings=(Mapping("a", 2),),
        operations=(
            ChangeHostMemory(Place("a")),
            HostWrite(Place("a"), PRESENT | WRITABLE | LARGE | ACCESSED | DIRTY),
            SetUserMemoryRegion(0, _GPA, 2 * PAGE_SIZE_BYTES, Place("a")),
            Start(_GPA + PAGE_SIZE_BYTES + STUB_OFFSET, _GPA, paging="two-level"),
        ),
    )
    outcomes = tried(scenario, Features(starts_32_bit=True), time_limit_s)
    return any(isinstance(each, Touched) for each in outcomes)


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
            case Stopped() if not (is_fault(outcome) or _is_no_instruction(outcome)):
                raise wrong_touch(
                    outcome, f"the guest executes lock xadd at gpa {_GPA:#x}, in a slot"
                )
    return False


def _is_no_instruction(outcome: Stopped) -> bool:
    """Whether KVM could not emulate the prefix itself; before 5.15 it does not say what it was."""
    return outcome.reason == InternalError.name and bool(_PREFIX.fullmatch(outcome.detail))
