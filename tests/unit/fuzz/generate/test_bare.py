"""Some random VMs have no slot but those of their operations, and execute what lies in them."""

import pytest

from tests.ideal import ideal_history
from vmm.fuzz.generate.bare import without_a_guest
from vmm.fuzz.generate.dice import seed_of
from vmm.fuzz.generate.scenarios import generate
from vmm.scenario.history import Stopped, Touched
from vmm.scenario.operations import (
    NO_SLOT,
    Execute,
    HostWrite,
    Instruction,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, judge

SLOT = SetUserMemoryRegion(1, 0x10_0000, 0x2000, Place("a"))


def made(*operations: object) -> Scenario:
    return without_a_guest(
        Scenario("made", operations, (Mapping("a", 2),), survey="none", vcpus=2)  # type: ignore[arg-type]
    )


def test_touches_become_the_code_of_their_page_and_the_rest_goes() -> None:
    scenario = made(
        SLOT,
        Touch(0x10_1100, "write", value=1),
        Sweep(0x10_2000, count=4, vcpu=1),
        Instruction("lock-xadd", 0x10_0000, value=1),
        Touch(1 << 40),
        HostWrite(Place("a"), 1),
    )
    assert scenario.operations == (SLOT, Execute(0x10_1000), Execute(0x10_2000, 1))
    assert scenario.guest.slot == NO_SLOT


def test_what_cannot_do_without_a_guest_stays_as_it_was() -> None:
    scenario = made(SLOT, Touch(0x10_0000), Execute(1 << 40))
    assert scenario.guest.slot != NO_SLOT
    assert Touch(0x10_0000) in scenario.operations


@pytest.fixture(scope="module")
def bare() -> list[Scenario]:
    every = (generate(seed_of(3, number), EVERYTHING) for number in range(300))
    return [scenario for scenario in every if scenario.guest.slot == NO_SLOT]


def test_some_scenarios_have_no_guest_and_their_vcpus_run_and_stop(bare: list[Scenario]) -> None:
    assert len(bare) >= 3
    met = set()
    for scenario in bare:
        validate(scenario)
        history = ideal_history(scenario, EVERYTHING)
        assert judge(history).status is Status.PASSED
        met |= {type(e.outcome) for e in history.events if isinstance(e.operation, Execute)}
    assert met == {Touched, Stopped}
