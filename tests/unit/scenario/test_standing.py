"""What churns needs two free slot ids and a free place: the operations before it say whether."""

import pytest

from vmm.scenario.operations import (
    AnyOperation,
    Churn,
    CloseVm,
    Guest,
    GuestThread,
    HostThread,
    Mapping,
    NewVm,
    Place,
    Race,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate

CHURN = Churn(7)


def slot(number: int, gpa: int = 0x100000, pages: int = 1) -> SetUserMemoryRegion:
    return SetUserMemoryRegion(number, gpa, pages << 12, Place("a"))


def problem(*operations: AnyOperation, guest: Guest | None = None) -> str:
    try:
        validate(Scenario("s", operations, (Mapping("a", 16),), guest=guest or Guest()))
    except ScenarioError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "before",
    [
        (slot(6), slot(9, 0x7000), slot(10, 0xD000)),
        (slot(7), SetUserMemoryRegion(7)),
        (slot(7), NewVm()),
        (slot(9, 0x8000), NewVm()),
        (slot(1 << 16 | 7),),
    ],
)
def test_a_slot_churns_where_nothing_is_in_its_way(before: tuple[AnyOperation, ...]) -> None:
    assert problem(*before, CHURN) == ""


@pytest.mark.parametrize(
    ("before", "complaint"),
    [
        ((slot(7),), ".slot: 7 may be in use"),
        ((slot(8),), ".slot: 8 may be in use"),
        ((slot(7), SetUserMemoryRegion(7, flags=1 << 30)), ".slot: 7 may be in use"),
        ((slot(7), SetUserMemoryRegion(7, caller="forked-child")), ".slot: 7 may be in use"),
        ((slot(9, 0x7000, 2),), ": another slot may be within gpa 0x8000 to 0xd000"),
        ((slot(9, 0xC000),), ": another slot may be within gpa"),
        ((slot(9, 0xC000), slot(9)), ": another slot may be within gpa"),
        (
            (
                Race(
                    (HostThread((slot(7), SetUserMemoryRegion(7))),),
                    (GuestThread((Touch(0x100000),)),),
                ),
            ),
            ".slot: 7 may be in use",
        ),
    ],
)
def test_what_may_be_in_the_way_is_named(before: tuple[AnyOperation, ...], complaint: str) -> None:
    assert problem(*before, CHURN).startswith(f"$.operations[{len(before)}]{complaint}")


def test_the_guests_own_slot_is_in_the_way_too() -> None:
    assert "another slot may be within" in problem(CHURN, guest=Guest(gpa=0))
    assert problem(CHURN, CloseVm(), guest=Guest(gpa=0x10000)) == ""
