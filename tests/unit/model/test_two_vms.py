"""Several VMs at a time: each has slots of its own, and all are closed in the end."""

import pytest

from tests.ideal import FEATURES
from vmm.model.model import Model
from vmm.scenario.history import Done, Refused, Touched
from vmm.scenario.operations import (
    AnyOperation,
    CloseVm,
    CreateGuestMemfd,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    SwitchVm,
    Touch,
)
from vmm.scenario.plan import steps
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate

A = Mapping("a", 2)
CREATE = SetUserMemoryRegion(1, 0x1000, 0x1000, Place("a"))


def test_a_vm_keeps_its_slots_while_another_is_spoken_of() -> None:
    model = Model((A,), FEATURES)
    outcomes = [
        model.prefer(op)[0].outcome
        for op in (
            *(CREATE, Touch(0x1000, "write", value=7)),
            *(SwitchVm(1), Touch(0x1000), SetUserMemoryRegion(1), CREATE, Touch(0x1000)),
            *(SetUserMemoryRegion(1), SwitchVm(0), Touch(0x1000)),
        )
    ]
    assert isinstance(outcomes[3], Touched)
    assert outcomes[3].mmio
    assert outcomes[4] == Refused(22)
    assert outcomes[6] == outcomes[9] == Touched(7)


def test_every_vm_is_closed_and_has_its_guests_slot() -> None:
    operations = (CREATE, SwitchVm(2), CREATE, CloseVm(), SwitchVm(1))
    plan = [step.operation for step in steps(Scenario("x", operations, (A,), survey="none"), 1)]
    guests = [op for op in plan if isinstance(op, SetUserMemoryRegion) and op.slot == 400]
    assert len(guests) == 3
    closed: set[int] = set()
    vm = 0
    for op in plan:
        if isinstance(op, SwitchVm):
            vm = op.vm
        elif isinstance(op, CloseVm):
            closed.add(vm)
    assert closed == {0, 1, 2}
    assert isinstance(plan[-2], CloseVm)


@pytest.mark.parametrize(
    ("operations", "problem"),
    [
        ((SwitchVm(4),), "not within 0 to 3"),
        ((SwitchVm(1), CreateGuestMemfd("f", 0x1000)), "scenarios of one VM"),
        ((SwitchVm(1), CloseVm(), CREATE), "the VM is closed"),
    ],
)
def test_what_cannot_be_said_of_several(operations: tuple[AnyOperation, ...], problem: str) -> None:
    with pytest.raises(ScenarioError, match=problem):
        validate(Scenario("odd", operations, (A,)))


def test_a_closed_vm_does_not_close_another() -> None:
    validate(Scenario("two", (SwitchVm(1), CloseVm(), SwitchVm(0), CREATE), (A,)))
    assert Model((A,), FEATURES).prefer(SwitchVm(1))[0].outcome == Done()
