"""Lives and churn in the model, and how many times a scenario may ask for them."""

import pytest

from tests.ideal import FEATURES
from vmm.model.model import Model
from vmm.scenario.history import Closed
from vmm.scenario.operations import (
    AnyOperation,
    Churn,
    Lives,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate

HOST = (Mapping("a", 8),)


@pytest.mark.parametrize(
    ("operation", "rule"),
    [
        (Lives("killed"), "vm-gone"),
        (Lives("closed", watch="kernel"), "nothing-used-up"),
        (Churn(1), "nothing-used-up"),
    ],
)
def test_nothing_is_left(operation: AnyOperation, rule: str) -> None:
    (choice,) = Model(HOST, FEATURES).allowed(operation)
    assert (choice.outcome, choice.rule.name) == (Closed(), rule)


@pytest.mark.parametrize(("slot", "gpa"), [(1, 0x20000), (2, 0x20000), (3, 0xC000), (3, 0x7000)])
def test_churn_where_slot_or_place_is_taken_is_unknown(slot: int, gpa: int) -> None:
    model = Model(HOST, FEATURES)
    (choice,) = model.allowed(SetUserMemoryRegion(slot, gpa, 0x2000, Place("a")))
    choice.adopt()
    assert model.allowed(Churn(1)) == ()


def test_churn_takes_two_ids() -> None:
    model = Model(HOST, FEATURES)
    assert model.allowed(Churn(FEATURES.nr_memslots - 2))
    assert model.allowed(Churn(FEATURES.nr_memslots - 1)) == ()


@pytest.mark.parametrize(
    ("operation", "complaint"),
    [
        (Lives("closed", 0), ".times: not within 1 to"),
        (Lives("closed", 1 << 20), ".times: not within 1 to"),
        (Churn(1, 0), ".times: not within 1 to"),
        (Churn(400), ".slot: 400 is the guest's own"),
        (Churn(399, 1, "refused-moves"), ".slot: 400 is the guest's own"),
        (Churn(32763), ".slot: it and the next one have to be within 0 to 32763"),
    ],
)
def test_asking_too_much_is_refused(operation: AnyOperation, complaint: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        validate(Scenario("greedy", (operation,)))
    assert complaint in str(caught.value)
