"""Minimising comes to the fewest operations and the simplest values, whatever they are."""

from collections.abc import Callable

import msgspec

from tests.ideal import FEATURES, ideal_history
from vmm.fuzz.generate.dice import seed_of
from vmm.fuzz.generate.scenarios import generate
from vmm.fuzz.minimise.minimiser import Minimiser, flattened
from vmm.fuzz.trial import Trial, shortened
from vmm.scenario.history import Touched
from vmm.scenario.operations import (
    GUEST_MEMFD,
    MEMFD_MMAP,
    PAGE_SIZE_BYTES,
    AnyOperation,
    ChangeHostMemory,
    CreateGuestMemfd,
    GuestThread,
    HostChangeKind,
    HostThread,
    Inspect,
    MapGuestMemfd,
    Mapping,
    MappingKind,
    NewVm,
    Place,
    Race,
    Scenario,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Survey,
    Touch,
)
from vmm.scenario.plan import steps
from vmm.scenario.validate import validate
from vmm.verdict.judge import judge

LONG = max((generate(seed_of(3, n), FEATURES) for n in range(12)), key=lambda s: len(s.operations))


def minimised(scenario: Scenario, differs: Callable[[Scenario], bool]) -> Scenario:
    minimiser = Minimiser(differs, FEATURES.touch_limit, 30.0)
    return minimiser.minimise(scenario, lambda _: None)


def slot(number: int, page: int, pages: int = 2, mapping: str = "a") -> SetUserMemoryRegion:
    gpa, size = page * PAGE_SIZE_BYTES, pages * PAGE_SIZE_BYTES
    return SetUserMemoryRegion(number, gpa, size, Place(mapping, PAGE_SIZE_BYTES))


def test_a_long_scenario_becomes_the_one_operation_that_matters() -> None:
    assert len(LONG.operations) > 300
    best = minimised(LONG, lambda s: any(isinstance(op, Touch) and op.value for op in s.operations))
    assert [type(op) for op in best.operations] == [Touch]


def moves(scenario: Scenario) -> bool:
    """Whether a slot is somewhere, then at another place, and is read where it was."""
    places: dict[int, int] = {}
    left: set[int] = set()
    for op in scenario.operations:
        if isinstance(op, SetUserMemoryRegion) and op.memory_size:
            left.add(places.get(op.slot, -1))
            places[op.slot] = op.guest_phys_addr
        elif isinstance(op, Touch) and op.gpa & -PAGE_SIZE_BYTES in left:
            return True
    return False


def test_what_belongs_together_is_simplified_together() -> None:
    noise: list[AnyOperation] = [slot(7, 0x900, mapping="b"), Touch(0x900_040), Inspect()]
    operations = (
        *noise,
        slot(30000, 0x777),
        *noise,
        slot(30000, 0x999),
        Touch(0x777_FFC, width=2),
        *noise,
    )
    mappings = (Mapping("a", 8), Mapping("b", 8))
    best = minimised(Scenario("noisy", operations, mappings, survey="none"), moves)
    first, second, touch = best.operations
    assert isinstance(first, SetUserMemoryRegion)
    assert isinstance(second, SetUserMemoryRegion)
    assert isinstance(touch, Touch)
    assert first.slot == second.slot == 1
    assert (first.guest_phys_addr, first.memory_size) == (0x100_000, PAGE_SIZE_BYTES)
    assert touch.gpa & -PAGE_SIZE_BYTES == 0x100_000
    assert len(best.mappings) == 1


def test_the_touches_of_a_survey_become_operations() -> None:
    surveyed = Scenario("surveyed", (slot(1, 0x100),), (Mapping("a", 8),))
    flat = flattened(surveyed, FEATURES.touch_limit)
    assert flat.survey == "none"
    assert any(isinstance(op, Touch) and op.access == "write" for op in flat.operations)
    best = minimised(surveyed, lambda s: len(s.operations) >= (1 if s.survey == "write" else 2))
    assert best.survey == "none"
    assert len(best.operations) == 2


def test_the_steps_stay_the_same_without_a_survey() -> None:
    operations = (slot(1, 0x100), NewVm(), slot(1, 0x200))
    surveyed = Scenario("surveyed", operations, (Mapping("a", 8),))
    flat = flattened(surveyed, FEATURES.touch_limit)
    validate(flat)
    before, after = (
        [step.operation for step in steps(each, FEATURES.touch_limit)] for each in (surveyed, flat)
    )
    assert after[: len(before) - 2] == before[:-2]  # There is one look more before the end.


def test_only_a_scenario_without_a_survey_is_cut_off_behind_the_difference() -> None:
    operations = (slot(1, 0x100), Touch(0x500_000), Touch(0x600_000))
    cases: tuple[tuple[Survey, int], ...] = (("none", 2), ("write", 3))
    for survey, kept in cases:
        scenario = Scenario("cut", operations, (Mapping("a", 8),), survey=survey)
        history = ideal_history(scenario)
        wrong = [
            msgspec.structs.replace(event, outcome=Touched(0x1234))
            if event.operation == operations[1]
            else event
            for event in history.events
        ]
        verdict = judge(msgspec.structs.replace(history, events=tuple(wrong)))
        assert verdict.difference is not None
        assert len(shortened(scenario, Trial(verdict, len(wrong))).operations) == kept


def having(kind: type[AnyOperation]) -> Callable[[Scenario], bool]:
    return lambda scenario: any(type(op) is kind for op in scenario.operations)


def test_what_names_a_mapping_in_any_way_is_minimised() -> None:
    file = SetUserMemoryRegion2(1, 0, PAGE_SIZE_BYTES, Place("a"), GUEST_MEMFD, guest_memfd="f")
    race = Race((HostThread((slot(2, 0x200, mapping="raced"),)),), (GuestThread((Touch(0),)),))
    operations = (
        slot(1, 0x100),
        CreateGuestMemfd("file", 4 * PAGE_SIZE_BYTES, MEMFD_MMAP),
        MapGuestMemfd("file", "shown"),
        file,
        race,
        slot(3, 0x300),
    )
    kinds: dict[str, MappingKind] = {
        "a": "anonymous",
        "raced": "anonymous",
        "f": "memfd",
        "shown": "guest_memfd",
    }
    mappings = tuple(Mapping(name, 4, kind) for name, kind in kinds.items())
    scenario = Scenario("names", operations, mappings, survey="none")
    for needed in operations:
        best = minimised(scenario, having(type(needed)))
        assert len(best.operations) <= 2, needed


UNDONE: tuple[tuple[HostChangeKind, str, int, int], ...] = (
    *(("fork", "a", 0, 1), ("reap", "a", 0, 1)),
    *(("move_away", "b", 0, 2), ("move_back", "b", 0, 2)),
    *(("fetch_later", "b", 3, 1), ("settle", "b", 3, 1)),
    *(("fork", "a", 0, 1), ("move_away", "b", 1, 3), ("move_back", "b", 1, 3), ("reap", "b", 0, 1)),
    *(("fetch_later", "b", 2, 1), ("settle", "b", 2, 1)),
    *(("move_away", "b", 1, 2), ("move_back", "b", 1, 2)),
    *(("guard", "b", 0, 3), ("settle", "b", 0, 3)),
    *(("fork", "b", 0, 1), ("reap", "b", 0, 1)),
)
"""Found by a search: what is moved away has to come back, and without a child none is reaped."""


def test_changes_that_stand_or_fall_together_are_left_out_together() -> None:
    undone = [
        ChangeHostMemory(Place(name, page * PAGE_SIZE_BYTES), pages, how)
        for how, name, page, pages in UNDONE
    ]
    fresh = ChangeHostMemory(Place("b", 2 * PAGE_SIZE_BYTES), 1, "map_fresh")
    needed = (slot(1, 0x100, mapping="b"), fresh, Touch(0x100_000))
    operations: tuple[AnyOperation, ...] = (*undone, needed[0], *undone[4:6], *needed[1:])
    scenario = Scenario("undone", operations, (Mapping("a", 4), Mapping("b", 4)), survey="none")

    def differs(tried: Scenario) -> bool:
        named = iter([getattr(op, "how", type(op).__name__) for op in tried.operations])
        return all(name in named for name in ("SetUserMemoryRegion", "map_fresh", "Touch"))

    for _ in range(4):  # Hypothesis tries at random, and is lucky now and then.
        assert len(minimised(scenario, differs).operations) == len(needed)


def test_a_difference_that_comes_and_goes_ends_with_what_was_found() -> None:
    calls = iter(range(1_000_000))
    best = minimised(LONG, lambda s: len(s.operations) > 3 and next(calls) % 3 != 2)
    assert 3 < len(best.operations) <= len(LONG.operations)


def test_what_never_differs_again_stays_as_it_is() -> None:
    assert minimised(LONG, lambda _: False).operations == LONG.operations


def test_time_ends_the_tries() -> None:
    minimiser = Minimiser(lambda _: True, FEATURES.touch_limit, -1.0)
    assert minimiser.minimise(LONG, lambda _: None).operations == LONG.operations
    assert minimiser.tries == 0
    assert minimiser.unfinished
