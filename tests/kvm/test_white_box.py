"""The executor looks into the kernel around region operations, and only there."""

from vmm.execution.looking import looked_at_by
from vmm.execution.runner import Worker
from vmm.fuzz.trial import attempt
from vmm.kvm.system import Kvm
from vmm.scenario.features import Features
from vmm.scenario.history import Header
from vmm.scenario.kernelslots import KernelTrees, SlotSet
from vmm.scenario.operations import (
    Mapping,
    NewVm,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)

EMPTY = SlotSet(0, 0, -1, (), -1, -1, (), (), ())


class Looks:
    """Counts: each look has a generation of its own."""

    made = 0

    def __init__(self, pid: int) -> None:
        Looks.made += 1
        self._vm = Looks.made
        self._asked = 0

    def generation(self, as_id: int) -> int | None:
        self._asked += 1
        return self._vm * 100 + self._asked if as_id < 2 else None

    def slots(self, as_id: int, before: int, slot_id: int) -> KernelTrees | None:
        return KernelTrees(before, as_id, (), EMPTY, EMPTY)


def test_every_region_operation_has_what_the_kernel_held_and_nothing_else_has() -> None:
    create = SetUserMemoryRegion(0, 0x10000, 0x1000, Place("a"))
    scenario = Scenario(
        "looked-at", (create, Touch(0x10000), NewVm(), create), mappings=(Mapping("a", 1),)
    )
    with looked_at_by(Looks), Worker([Header(scenario, Features())]) as worker:
        worker.start(0)
        history = worker.wait().history()
    for event in history.events:
        is_region = isinstance(event.operation, SetUserMemoryRegion)
        assert (event.kernel is not None) == is_region, event
    befores = [each.kernel.before for each in history.events if each.kernel is not None]
    # The guest's own slot comes first, in each VM.
    assert befores == [101, 102, 201, 202]


def test_a_random_scenario_is_judged_by_what_the_kernel_held() -> None:
    create = SetUserMemoryRegion(0, 0x10000, 0x1000, Place("a"))
    scenario = Scenario("fuzzed", (create,), mappings=(Mapping("a", 1),), survey="none")
    with Kvm.open() as kvm:
        assert attempt(kvm, scenario, Features()).identity is None
        with looked_at_by(Looks):
            found = attempt(kvm, scenario, Features()).identity
    assert found is not None
    assert found.rules == ("kernel-trees",)
