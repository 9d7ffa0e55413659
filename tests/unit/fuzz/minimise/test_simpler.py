"""What surrounds a finding goes, too: whatever the difference does not need."""

from collections.abc import Callable

import msgspec
import pytest

from tests.ideal import FEATURES
from vmm.catalogue import catalogue
from vmm.fuzz.minimise.minimiser import Minimiser
from vmm.fuzz.minimise.needs import used_needs
from vmm.scenario.features import NEEDS
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    ChangeHostMemory,
    CreateIrqchip,
    GetDirtyLog,
    Guest,
    GuestThread,
    HostThread,
    Mapping,
    MappingKind,
    Place,
    Race,
    Scenario,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Touch,
)
from vmm.verdict.ideal import EVERYTHING


def minimised(scenario: Scenario, differs: Callable[[Scenario], bool]) -> Scenario:
    minimiser = Minimiser(differs, FEATURES.touch_limit, 30.0)
    return minimiser.minimise(scenario, lambda _: None)


def slot(
    pages: int = 1, mapping: str = "a", offset: int = 0, flags: int = 0
) -> SetUserMemoryRegion:
    size = pages * PAGE_SIZE_BYTES
    return SetUserMemoryRegion(1, 0x100_000, size, Place(mapping, offset * PAGE_SIZE_BYTES), flags)


def has(*kinds: type[AnyOperation]) -> Callable[[Scenario], bool]:
    return lambda scenario: {type(op) for op in scenario.operations} >= set(kinds)


def test_nothing_that_surrounds_the_operations_stays() -> None:
    scenario = Scenario(
        "surrounded",
        (slot(), Touch(0x100_000, vcpu=3)),
        (Mapping("a", 1024, "thp"), Mapping("b", 8)),
        needs=("sw_protected", "smm", "readonly_mem"),
        vcpus=4,
        guest=Guest(7, 0x10000),
        vm_type=1,
    )
    best = minimised(scenario, has(SetUserMemoryRegion))
    assert best == Scenario("surrounded", (slot(),), (Mapping("a", 1),), survey="none")


def test_what_an_author_expects_goes() -> None:
    expecting = msgspec.structs.replace(slot(), expect="EEXIST")
    best = minimised(
        Scenario("expecting", (expecting,), (Mapping("a", 1024),)), has(SetUserMemoryRegion)
    )
    assert [op.expect for op in best.operations] == [""]


def test_what_the_difference_needs_stays() -> None:
    scenario = Scenario(
        "needing",
        (slot(pages=600, offset=5),),
        (Mapping("a", 2048, "hugetlb"),),
        needs=("hugetlb_pages", "smm"),
        vcpus=4,
        vm_type=0,
        survey="read",
    )

    def differs(s: Scenario) -> bool:
        kinds = [mapping.kind for mapping in s.mappings]
        needed = kinds == ["hugetlb"] and s.vcpus >= 2 and "smm" in s.needs
        return needed and s.operations == scenario.operations

    best = minimised(scenario, differs)
    assert best.mappings == (Mapping("a", 1024, "hugetlb"),), "605 pages, in whole huge ones"
    assert best.vcpus == 2
    assert best.needs == ("hugetlb_pages", "smm")


def test_each_flag_goes_by_itself() -> None:
    scenario = Scenario(
        "flags",
        (slot(flags=LOG_DIRTY_PAGES | READONLY), GetDirtyLog(1)),
        (Mapping("a", 1),),
        survey="none",
    )

    def logged(candidate: Scenario) -> bool:
        regions = [op for op in candidate.operations if isinstance(op, SetUserMemoryRegion)]
        return any(op.flags & LOG_DIRTY_PAGES for op in regions)

    assert minimised(scenario, logged).operations == (slot(flags=LOG_DIRTY_PAGES),)


def test_the_second_form_of_a_call_becomes_the_first() -> None:
    second = SetUserMemoryRegion2(1, 0x100_000, PAGE_SIZE_BYTES, Place("a"))
    scenario = Scenario("second", (second, Touch(0)), (Mapping("a", 1),), survey="none")
    best = minimised(
        scenario, lambda s: any(isinstance(op, SetUserMemoryRegion) for op in s.operations)
    )
    assert best.operations == (slot(),)


def test_a_race_loses_threads_and_steps_and_goes_on_for_as_long() -> None:
    host = HostThread((slot(), GetDirtyLog(1), slot()), rounds=500, pause=3)
    guest = GuestThread((Touch(0x100_000), Touch(0x101_000)), windows=9000)
    race = Race((host, HostThread((GetDirtyLog(2),))), (guest, guest))
    scenario = Scenario("race", (race,), (Mapping("a", 1),), survey="none", vcpus=2)

    def still(candidate: Scenario) -> bool:
        (race,) = candidate.operations
        assert isinstance(race, Race)
        calls = [op for thread in race.hosts for op in thread.operations]
        return GetDirtyLog(1) in calls and len(race.guests) == 1

    (best,) = minimised(scenario, lambda s: len(s.operations) == 1 and still(s)).operations
    assert isinstance(best, Race)
    assert len(best.hosts) == len(best.guests) == 1
    assert best.hosts[0].operations == (GetDirtyLog(1),)
    assert (best.hosts[0].rounds, best.hosts[0].pause) == (500, 0)
    assert best.guests[0].windows == 9000
    assert len(best.guests[0].program) == 1


@pytest.mark.parametrize("kind", ["memfd", "shared", "thp"])
def test_memory_of_another_kind_becomes_ordinary(kind: MappingKind) -> None:
    scenario = Scenario("kind", (ChangeHostMemory(Place("a")),), (Mapping("a", 4, kind),))
    assert minimised(scenario, has(ChangeHostMemory)).mappings == (Mapping("a", 1),)


def test_what_is_in_use_stays_needed() -> None:
    """A kernel without it would be held to what it never promised."""
    scenario = Scenario("chip", (CreateIrqchip(),), needs=("irqchip", "readonly_mem"))
    assert minimised(scenario, has(CreateIrqchip)).needs == ("irqchip",)


def test_each_feature_is_seen_in_use() -> None:
    named = {need for scenario in catalogue(EVERYTHING) for need in scenario.needs}
    used = {need for scenario in catalogue(EVERYTHING) for need in used_needs(scenario)}
    assert named <= used <= NEEDS.keys()
