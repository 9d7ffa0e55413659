"""Between ``close_vm`` and ``new_vm`` only what takes no VM may come."""

from typing import get_args

import pytest

from tests.ideal import ideal_history
from vmm.scenario.operations import (
    AnyOperation,
    ChangeHostMemory,
    Churn,
    ClearDirtyLog,
    CloseGuestMemfd,
    CloseVm,
    CoalesceMmio,
    CollectMmio,
    CreateGuestMemfd,
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    Execute,
    GetDirtyLog,
    GuestThread,
    HarvestDirtyRing,
    HostWrite,
    Inspect,
    Instruction,
    IoEventFd,
    KvmclockCtrl,
    Lives,
    MapGuestMemfd,
    Mapping,
    NewVm,
    Place,
    PreFaultMemory,
    PunchGuestMemfd,
    Race,
    ResetDirtyRings,
    Scenario,
    SetClockMsr,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Start,
    Sweep,
    SwitchVm,
    Touch,
    UnmapInternalSlots,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status, judge

FREE: tuple[AnyOperation, ...] = (
    CloseVm(),
    NewVm(),
    Lives("closed"),
    Inspect(),
    HostWrite(Place("a"), 1),
    ChangeHostMemory(Place("a")),
    CloseGuestMemfd("f"),
    MapGuestMemfd("f", "m"),
    PunchGuestMemfd("f", 0, 0x1000),
)
BOUND: tuple[AnyOperation, ...] = (
    SetUserMemoryRegion(1, 0x10000, 0x1000, Place("a")),
    SetUserMemoryRegion2(1, 0x10000, 0x1000, Place("a")),
    Touch(0x10000),
    Sweep(0x10000, 1),
    Execute(0x10000),
    Start(0x800),
    Instruction("xchg", 0x10000),
    Race((), (GuestThread((Touch(0x10000),), 1),)),
    GetDirtyLog(1),
    ClearDirtyLog(1),
    EnableCap("DISABLE_QUIRKS2", 0),
    HarvestDirtyRing(),
    ResetDirtyRings(),
    CreateGuestMemfd("g", 0x1000),
    SetMemoryAttributes(0, 0x1000),
    Churn(3),
    SetTssAddr(0x10000),
    SetIdentityMapAddr(0x10000),
    CreateIrqchip(),
    CreateVcpu(),
    UnmapInternalSlots(),
    PreFaultMemory(0, 0x1000),
    CoalesceMmio(0x1000, 0x1000),
    IoEventFd("e", 0x1000),
    CollectMmio(),
    SetClockMsr("steal_time", 0x1000),
    KvmclockCtrl(),
)


def scenario(*operations: AnyOperation) -> Scenario:
    made = CreateGuestMemfd("f", 0x1000, 3)
    mappings = (Mapping("a", 1), Mapping("m", 1, "guest_memfd"))
    return Scenario("closed", (made, *operations), mappings)


def test_every_operation_is_of_one_kind_or_the_other() -> None:
    others = {SwitchVm}  # See tests/unit/model/test_two_vms.py: not beside guest_memfds.
    assert {type(each) for each in (*FREE, *BOUND)} | others == set(get_args(AnyOperation))


@pytest.mark.parametrize("operation", BOUND, ids=lambda op: type(op).__name__)
def test_what_takes_a_vm_is_refused_with_the_place(operation: AnyOperation) -> None:
    for between in ((), FREE[2:5]):
        text = rf"\$\.operations\[{2 + len(between)}\]: the VM is closed"
        with pytest.raises(ScenarioError, match=text):
            validate(scenario(CloseVm(), *between, operation))
    validate(scenario(CloseVm(), NewVm(), operation))


@pytest.mark.parametrize("operation", FREE, ids=lambda op: type(op).__name__)
def test_what_takes_none_has_an_outcome(operation: AnyOperation) -> None:
    made = scenario(CloseVm(), operation, Inspect())
    validate(made)
    assert judge(ideal_history(made)).status is Status.PASSED
