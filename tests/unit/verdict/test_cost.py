"""What judging costs, counted and not timed: calls of Python functions for each event.

A survey has thousands of touches, so that each call is felt. The limits are what it takes today,
and a few more.
"""

import sys
from types import FrameType

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.catalogue._build import at
from vmm.scenario.history import History
from vmm.scenario.operations import PAGE_SIZE_BYTES, Mapping, Scenario, SetUserMemoryRegion, Touch
from vmm.verdict.judge import Judgement, Status

# On a kernel that makes slots for itself each access asks them, too.
_FEATURES = msgspec.structs.replace(
    FEATURES, internal_tss=False, internal_identity=False, internal_apic=False
)
_GPA = 0x10_0000
_TIMES = 50


def touches(gpa: int, access: str) -> list[Touch]:
    return [
        Touch(gpa + PAGE_SIZE_BYTES * (number % 4), "write" if access == "write" else "read")
        for number in range(_TIMES)
    ]


def calls_of_judging(history: History) -> int:
    """Return how many calls the last `_TIMES` events take before the VM is closed."""
    judgement = Judgement(history.header)
    *first, _, _, _ = history.events
    for event in first[:-_TIMES]:
        assert judgement.admits(event)
    calls = 0

    def count(frame: FrameType, what: str, argument: object) -> None:
        nonlocal calls
        calls += what == "call"

    sys.setprofile(count)
    try:
        for event in first[-_TIMES:]:
            judgement.admits(event)
    finally:
        sys.setprofile(None)
    assert judgement.verdict("").status is Status.PASSED
    return calls


@pytest.mark.parametrize(
    ("gpa", "access", "most"),
    [(_GPA, "read", 20), (_GPA, "write", 24), (_GPA << 1, "read", 19), (_GPA << 1, "write", 19)],
    ids=("reads memory", "writes memory", "reads a hole", "writes a hole"),
)
def test_a_touch_takes_few_calls(gpa: int, access: str, most: int) -> None:
    slot = SetUserMemoryRegion(1, _GPA, 4 * PAGE_SIZE_BYTES, at("a"))
    scenario = Scenario("touches", (slot, *touches(gpa, access)), (Mapping("a", 4),), survey="none")
    history = ideal_history(scenario, _FEATURES)
    assert calls_of_judging(history) / _TIMES <= most


@pytest.mark.parametrize("slots", [10, 2000])
def test_a_region_call_takes_as_many_calls_in_a_large_table(slots: int) -> None:
    made = [
        SetUserMemoryRegion(number, _GPA + number * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES, at("a"))
        for number in range(slots)
        if number != 400
    ]
    again = [made[0] if number % 2 else SetUserMemoryRegion(0) for number in range(_TIMES)]
    scenario = Scenario("table", (*made, *again), (Mapping("a", 1),), survey="none")
    assert calls_of_judging(ideal_history(scenario, _FEATURES)) / _TIMES <= 36
