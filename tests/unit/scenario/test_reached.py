"""Large mappings: which of their pages are reached, and what may be declared."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, strategies as st

from tests.ideal import FEATURES, ideal_history
from vmm.scenario.demand import memory_bytes
from vmm.scenario.history import Event, HostChange, Inspected
from vmm.scenario.limits import MAX_SPARSE_PAGES
from vmm.scenario.operations import (
    AnyOperation,
    ChangeHostMemory,
    Execute,
    HostThread,
    HostWrite,
    Mapping,
    MappingKind,
    Place,
    PreFaultMemory,
    Race,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.scenario.plan import steps
from vmm.scenario.problem import ScenarioError
from vmm.scenario.reached import (
    MAX_PRE_FAULTED_PAGES,
    SPARSE_PAGES,
    filled_pages,
    reached_pages,
    runs_of,
    within,
)
from vmm.scenario.survey import MAX_SURVEY_WINDOWS
from vmm.scenario.validate import is_valid, validate
from vmm.verdict.judge import Status, judge

GIB = 1 << 30
RAM = MAX_SPARSE_PAGES


def slot(gpa: int, size: int, offset: int = 0) -> SetUserMemoryRegion:
    return SetUserMemoryRegion(
        1, guest_phys_addr=gpa, memory_size=size, userspace_addr=Place("ram", offset)
    )


def large(*operations: AnyOperation, pages: int = RAM, kind: MappingKind = "anonymous") -> Scenario:
    return Scenario("large", operations, (Mapping("ram", pages, kind),), survey="none")


def reached(*operations: AnyOperation) -> tuple[int, ...]:
    return reached_pages(large(*operations), 1 << 52)["ram"]


def touched_by(scenario: Scenario) -> set[int]:
    plan = steps(scenario, 1 << 52)
    return {step.operation.gpa for step in plan if isinstance(step.operation, Touch)}


def test_accesses_reach_pages_through_every_slot_that_covers_them() -> None:
    assert reached(
        slot(0x100000, 8 * GIB, 0x5000),
        slot(0x101000, 0x2000, 4 * GIB),
        Touch(0x101FFE),
        Sweep(0x104000, 0x1000, width=4),
        Execute(0x200000),
        Touch(9 * GIB),
    ) == (6, 7, 9, 10, 11, 12, 0x105, 1 << 20, 1 + (1 << 20))


def test_what_the_host_writes_and_what_is_mapped_ahead_is_reached() -> None:
    assert reached(HostWrite(Place("ram", 0x8FFE), 1)) == (8, 9)
    assert reached(slot(0, GIB), PreFaultMemory(0x3000, 0x1001)) == (3, 4)


def test_small_mappings_are_filled_whole() -> None:
    scenario = large(Touch(0), pages=SPARSE_PAGES)
    assert reached_pages(scenario, 1 << 52) == {}
    assert filled_pages(scenario.mappings[0], {}) == SPARSE_PAGES


def test_a_page_of_a_huge_page_fills_it() -> None:
    pages = {"ram": (0, 511, 512, 4096)}
    assert filled_pages(Mapping("ram", RAM), pages) == 4
    assert filled_pages(Mapping("ram", RAM, "thp"), pages) == 3 * 512


@given(st.sets(st.integers(0, 60)))
def test_runs_are_the_pages_in_order(pages: set[int]) -> None:
    runs = list(runs_of(sorted(pages)))
    assert [page for run in runs for page in run] == sorted(pages)
    assert all(one.stop < other.start for one, other in pairwise(runs))


def test_a_part_of_the_pages() -> None:
    assert within((1, 4, 5, 9), range(4, 9)) == (4, 5)


def test_a_survey_of_a_large_slot_visits_ends_and_borders() -> None:
    scenario = msgspec.structs.replace(large(slot(0, 3 * GIB)), survey="read")
    touched = {gpa >> 12 for gpa in touched_by(scenario)}
    for border in (GIB, 2 * GIB, 3 * GIB, 2 << 20):
        assert {(border >> 12) - 1, border >> 12} <= touched
    assert {0, (3 * GIB >> 12) - 1} <= touched
    assert len(touched) < 300


def test_a_survey_above_4_gib_visits_the_ends_first() -> None:
    scenario = msgspec.structs.replace(large(slot(4 * GIB, 60 * GIB)), survey="read")
    gpas = {
        step.operation.gpa for step in steps(scenario, 1 << 52) if isinstance(step.operation, Touch)
    }
    pages = {gpa >> 12 for gpa in gpas}
    assert {(64 * GIB >> 12) - 1, 64 * GIB >> 12, (5 * GIB >> 12) - 1, 5 * GIB >> 12} <= pages
    assert len({gpa >> 21 for gpa in gpas if gpa >= 4 * GIB}) <= MAX_SURVEY_WINDOWS


def test_64_gib_are_safe_to_declare_and_cost_what_is_reached() -> None:
    scenario = msgspec.structs.replace(large(slot(4 * GIB, 60 * GIB)), survey="write")
    validate(scenario)
    assert memory_bytes(scenario) < 400 << 20


def test_a_history_of_large_memory_is_judged_and_a_wrong_page_is_found() -> None:
    scenario = msgspec.structs.replace(
        large(
            slot(0, 2 * GIB, GIB),
            ChangeHostMemory(Place("ram", 0), RAM, "drop"),
            slot(0x1000, 2 * GIB, GIB),
        ),
        survey="write",
    )
    history = ideal_history(scenario, FEATURES)
    assert judge(history).status is Status.PASSED
    at = max(
        index
        for index, event in enumerate(history.events)
        if isinstance(event.outcome, Inspected) and event.outcome.changes
    )
    seen = history.events[at].outcome
    assert isinstance(seen, Inspected)
    changes = Inspected((*seen.changes, HostChange("ram", 8, b"x")))
    wrong = Event(history.events[at].origin, history.events[at].operation, changes)
    events = (*history.events[:at], wrong, *history.events[at + 1 :])
    assert judge(msgspec.structs.replace(history, events=events)).status is Status.DIFFERS


@pytest.mark.parametrize(
    ("scenario", "says"),
    [
        (large(pages=RAM + 1), "$.mappings[0].pages: at most"),
        (large(Race(hosts=(HostThread((slot(0, GIB),)),))), "races take no mapping of more than"),
        (
            large(PreFaultMemory(0, MAX_PRE_FAULTED_PAGES + 1 << 12)),
            "$.operations[0].size: at most",
        ),
        (
            large(
                slot(0, 4 * GIB - (1 << 20)),
                *(Touch(number << 21) for number in range(1, 300)),
                kind="thp",
            ),
            "$.mappings: 153088 pages would be filled",
        ),
    ],
)
def test_what_would_take_too_much(scenario: Scenario, says: str) -> None:
    assert not is_valid(scenario)
    with pytest.raises(ScenarioError) as error:
        validate(scenario)
    assert says in str(error.value)
