"""Random VMs with private memory: where the kernel has them, and so that they can be judged."""

import msgspec

from tests.searched import composed, composed_from
from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.races import race_scenario
from vmm.model.model import Model
from vmm.scenario.history import Header
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    Race,
    Scenario,
    SetMemoryAttributes,
    SetUserMemoryRegion2,
)
from vmm.scenario.plan import steps
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING


def private(scenario: Scenario) -> bool:
    return any(
        isinstance(op, SetMemoryAttributes) and op.attributes == ATTRIBUTE_PRIVATE
        for op in scenario.operations
    )


def test_vms_with_private_memory_are_generated_where_the_kernel_has_them() -> None:
    numbers = [number for number, each in enumerate(composed(300)) if each.vm_type]
    protected = [composed_from(number, EVERYTHING) for number in numbers]
    assert len(protected) > 3
    assert any(map(private, protected))
    assert any(isinstance(op, SetUserMemoryRegion2) for s in protected for op in s.operations)
    known = 0
    for scenario in protected:
        validate(scenario)
        model = Model.of(Header(scenario, EVERYTHING))
        plan = steps(scenario, EVERYTHING.touch_limit)
        known += all(model.prefer(step.operation) for step in plan)
    assert 2 * known > len(protected)
    without = msgspec.structs.replace(EVERYTHING, vm_types=0)
    assert not any(composed_from(number, without).vm_type for number in numbers)


def test_races_over_attributes_are_generated() -> None:
    made = [race_scenario(Dice(number), EVERYTHING, "race") for number in range(40)]
    protected = [scenario for scenario in made if scenario.vm_type]
    assert protected
    converted = 0
    for scenario in protected:
        validate(scenario)
        (race,) = (op for op in scenario.operations if isinstance(op, Race))
        actions = [op for host in race.hosts for op in host.operations]
        converted += any(isinstance(op, SetMemoryAttributes) for op in actions)
        assert any(isinstance(op, SetUserMemoryRegion2) for op in actions)
    assert converted
