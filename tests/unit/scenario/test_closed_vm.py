"""Between ``close_vm`` and ``new_vm`` only what takes no VM may come."""

from typing import get_args

import pytest

from tests.ideal import ideal_history
from vmm.scenario import operations as ops
from vmm.scenario.operations import AnyOperation, GuestThread, Mapping, Place, Scenario
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status, judge

FREE: tuple[AnyOperation, ...] = (
    ops.CloseVm(),
    ops.NewVm(),
    ops.Lives("closed"),
    ops.Inspect(),
    ops.HostWrite(Place("a"), 1),
    ops.ChangeHostMemory(Place("a")),
    ops.CloseGuestMemfd("f"),
    ops.MapGuestMemfd("f", "m"),
    ops.PunchGuestMemfd("f", 0, 0x1000),
    ops.ResizeGuestMemfd("f", 0x1000),
)
BOUND: tuple[AnyOperation, ...] = (
    ops.SetUserMemoryRegion(1, 0x10000, 0x1000, Place("a")),
    ops.SetUserMemoryRegion2(1, 0x10000, 0x1000, Place("a")),
    ops.Touch(0x10000),
    ops.Sweep(0x10000, 1),
    ops.Execute(0x10000),
    ops.Start(0x800),
    ops.Instruction("xchg", 0x10000),
    ops.Race((), (GuestThread((ops.Touch(0x10000),), 1),)),
    ops.GetDirtyLog(1),
    ops.ClearDirtyLog(1),
    ops.EnableCap("DISABLE_QUIRKS2", 0),
    ops.HarvestDirtyRing(),
    ops.ResetDirtyRings(),
    ops.MapVcpuPages(),
    ops.SetNrMmuPages(64),
    ops.CreateGuestMemfd("g", 0x1000),
    ops.SetMemoryAttributes(0, 0x1000),
    ops.Churn(3),
    ops.SetTssAddr(0x10000),
    ops.SetIdentityMapAddr(0x10000),
    ops.CreateIrqchip(),
    ops.CreateVcpu(),
    ops.SetApicBase(0x20000),
    ops.UnmapInternalSlots(),
    ops.PreFaultMemory(0, 0x1000),
    ops.CoalesceMmio(0x1000, 0x1000),
    ops.IoEventFd("e", 0x1000),
    ops.CollectMmio(),
    ops.SetCoalescedRing(0),
    ops.SetClockMsr("steal_time", 0x1000),
    ops.KvmclockCtrl(),
    ops.SetVapicAddr(0x1000),
    ops.SetApic(),
    ops.SetPageMsr("pv_eoi", 0x1000),
)


def scenario(*operations: AnyOperation) -> Scenario:
    made = ops.CreateGuestMemfd("f", 0x1000, 3)
    mappings = (Mapping("a", 1), Mapping("m", 1, "guest_memfd"))
    return Scenario("closed", (made, *operations), mappings)


def test_every_operation_is_of_one_kind_or_the_other() -> None:
    others = {ops.SwitchVm}  # See tests/unit/model/test_two_vms.py: not beside guest_memfds.
    assert {type(each) for each in (*FREE, *BOUND)} | others == set(get_args(AnyOperation))


@pytest.mark.parametrize("operation", BOUND, ids=lambda op: type(op).__name__)
def test_what_takes_a_vm_is_refused_with_the_place(operation: AnyOperation) -> None:
    for between in ((), FREE[2:5]):
        text = rf"\$\.operations\[{2 + len(between)}\]: the VM is closed"
        with pytest.raises(ScenarioError, match=text):
            validate(scenario(ops.CloseVm(), *between, operation))
    validate(scenario(ops.CloseVm(), ops.NewVm(), operation))


@pytest.mark.parametrize("operation", FREE, ids=lambda op: type(op).__name__)
def test_what_takes_none_has_an_outcome(operation: AnyOperation) -> None:
    made = scenario(ops.CloseVm(), operation, ops.Inspect())
    validate(made)
    assert judge(ideal_history(made)).status is Status.PASSED
