"""Which slots a report shows where there are too many for it."""

import pytest

from vmm.model.regions import Memslot
from vmm.scenario.operations import (
    AnyOperation,
    CloseVm,
    SetUserMemoryRegion,
    Touch,
)
from vmm.verdict.slotmap import slot_map_near

SLOTS = [Memslot(number, 0x100 + number, 1, 0, 0) for number in reversed(range(100))]
MOVE = SetUserMemoryRegion(7, 0x132000, 0x1000, 0)


@pytest.mark.parametrize(
    ("operation", "shown"),
    [
        (Touch(0x132040), ["... 47 more", "[47]", "[48]", "[49]", "[50]", "... 49 more"]),
        (MOVE, ["... 48 more", "[48]", "[49]", "[50]", "... 41 more", "[92]", "... 7 more"]),
        (Touch(0), ["... 96 more", "[96]", "[97]", "[98]", "[99]"]),
        (CloseVm(), ["[0]", "[1]", "[2]", "[3]", "... 96 more"]),
    ],
)
def test_the_slots_nearest_to_the_operation_are_shown(
    operation: AnyOperation, shown: list[str]
) -> None:
    lines = list(slot_map_near(operation, [SLOTS], 4))
    assert [line if line.startswith("...") else line.split()[0] for line in lines] == shown


def test_few_slots_are_all_shown() -> None:
    assert len(list(slot_map_near(MOVE, [SLOTS[:2], SLOTS[2:4]], 4))) == 4
