"""What ran in one process is joined to one scenario, which does the same in each of its VMs."""

import msgspec

from tests.ideal import FEATURES, ideal_history
from vmm.fuzz.generate.dice import seed_of
from vmm.fuzz.generate.scenarios import generate
from vmm.fuzz.minimise.join import MOST_OPERATIONS, joins
from vmm.scenario.history import AnyOutcome, Done
from vmm.scenario.operations import (
    CloseVm,
    CreateGuestMemfd,
    Mapping,
    NewVm,
    Place,
    PunchGuestMemfd,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status, judge

SLOT = SetUserMemoryRegion(1, 0x100000, 0x1000, Place("a"))


def one(name: str, *mappings: Mapping, vcpus: int = 1) -> Scenario:
    operations = (SLOT, Touch(0x100040), Touch(0x100080, "write", value=7))
    return Scenario(name, operations, mappings or (Mapping("a", 1),), survey="none", vcpus=vcpus)


def outcomes(scenario: Scenario) -> list[AnyOutcome]:
    """Return what region calls of the scenario itself come to."""
    return [
        event.outcome
        for event in ideal_history(scenario, FEATURES).events
        if isinstance(event.operation, SetUserMemoryRegion) and event.operation.slot != 400
    ]


def test_each_scenario_has_a_vm_and_memory_of_its_own() -> None:
    last = one("last", Mapping("a", 4, "memfd"))
    *_, joined = joins([one("first", vcpus=2), one("second")], last)
    validate(joined)
    assert joined.name == "last"
    assert joined.vcpus == 2
    assert [type(op) for op in joined.operations].count(NewVm) == 2
    assert [m.name for m in joined.mappings] == ["before-2-a", "before-1-a", "a"]
    assert joined.operations[-3:] == last.operations
    assert outcomes(joined) == [Done()] * 3
    assert judge(ideal_history(joined, FEATURES)).status is Status.PASSED


def test_more_and_more_of_what_ran_before_is_tried() -> None:
    before = [one(f"s{n}") for n in range(5)]
    lengths = [len(joined.operations) for joined in joins(before, one("last"))]
    assert lengths == [3 + 4 * count for count in (1, 2, 4, 5)]
    long = msgspec.structs.replace(before[0], operations=(Touch(0x100040),) * MOST_OPERATIONS)
    assert list(joins([long], one("last"))) == []


def test_files_keep_apart_and_memory_at_address_0_is_shared() -> None:
    made = Scenario(
        "files",
        (
            CreateGuestMemfd("f", 0x1000),
            PunchGuestMemfd("f", 0, 0x1000),
            SetUserMemoryRegion(2, 0x200000, 0x1000, Place("zero")),
        ),
        (Mapping("zero", 1, "zero"),),
        survey="none",
        needs=("guest_memfd",),
    )
    (joined,) = joins([made], msgspec.structs.replace(made, name="last", needs=()))
    validate(joined)
    files = [op.name for op in joined.operations if isinstance(op, CreateGuestMemfd)]
    assert files == ["before-1-f", "f"]
    assert [m.name for m in joined.mappings] == ["zero"]
    assert joined.needs == ("guest_memfd",)


def test_what_cannot_be_joined_is_left_out() -> None:
    surveyed = msgspec.structs.replace(one("surveyed"), survey="write")
    closed = msgspec.structs.replace(one("closed"), operations=(CloseVm(), SLOT))
    (joined,) = joins([surveyed, one("plain"), closed], one("last"))
    assert len(joined.operations) == 7
    assert list(joins([one("plain")], surveyed)) == []


def test_random_scenarios_do_joined_what_they_do_alone() -> None:
    made = [generate(seed_of(31, number), FEATURES) for number in range(12)]
    plain = [each for each in made if len(each.operations) < 150 and not each.needs]
    *_, joined = joins(plain[:3], plain[3])
    assert sum(isinstance(op, NewVm) for op in joined.operations) >= 3
    alone = [outcome for each in plain[:4] for outcome in outcomes(each)]
    assert outcomes(joined) == alone
