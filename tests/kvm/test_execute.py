"""Pages whose code was written over are executed like any other, and leave nothing pending."""

import pytest

from vmm.execution.executor import Recorder, execute
from vmm.kvm.system import Kvm
from vmm.scenario.content import STUB_OFFSET, identity
from vmm.scenario.history import Event, Mmio, Stopped, Touched
from vmm.scenario.operations import (
    AnyOperation,
    Execute,
    HostWrite,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)

GPA = 0x10_0000
HOLE = 0x200
MEMORY = Touched(identity(0, 0))
LOADS_FROM_A_HOLE = 0xF400_02A0  # mov al, [0x200]
STORES_TO_A_HOLE = 0xF400_02A2  # mov [0x200], al
READS_A_PORT = 0xF490_02E4  # in al, 2


def outcomes(kvm: Kvm, *operations: AnyOperation) -> list[object]:
    scenario = Scenario("written-over", operations, (Mapping("a", 1),), survey="none")
    events: list[Event] = []
    execute(kvm, scenario, 1 << 32, Recorder(events.append))
    return [event.outcome for event in events if event.operation in operations]


@pytest.mark.parametrize(
    ("code", "reason"),
    [(LOADS_FROM_A_HOLE, "mmio"), (STORES_TO_A_HOLE, "mmio"), (READS_A_PORT, "io")],
)
@pytest.mark.parametrize(
    ("after", "wanted"),
    [
        (Touch(GPA), MEMORY),
        (Touch(HOLE), Touched(0xFFFF_FFFF, (Mmio(HOLE, False, b"\xff" * 4),))),
        (Execute(GPA + 0x1000), MEMORY),
    ],
)
def test_what_code_left_pending_is_not_part_of_the_next_access(
    kvm: Kvm, code: int, reason: str, after: AnyOperation, wanted: Touched
) -> None:
    found = outcomes(
        kvm,
        SetUserMemoryRegion(1, GPA, 0x1000, Place("a")),
        SetUserMemoryRegion(2, GPA + 0x1000, 0x1000, Place("a")),
        HostWrite(Place("a", STUB_OFFSET), code),
        Execute(GPA),
        HostWrite(Place("a", STUB_OFFSET), 0xEB00_00B8),
        after,
    )
    assert isinstance(found[3], Stopped)
    assert found[3].reason == reason
    assert found[5] == wanted
