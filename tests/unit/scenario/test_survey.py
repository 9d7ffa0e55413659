"""Where a survey looks, below 4 GiB and above."""

from guests.windows import WINDOW_STEP_BYTES as GUEST_STEP, WINDOWS
from vmm.scenario.limits import MAX_TOUCHED_WINDOWS
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    WINDOW_STEP_BYTES,
    Execute,
    Guest,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.scenario.plan import needs_cpuid, out_of_reach
from vmm.scenario.survey import MAX_SURVEY_PAGES, MAX_SURVEY_WINDOWS, Survey

PAGE = PAGE_SIZE_BYTES
TOP = 1 << 52
GIB = 1 << 30


def scenario(*regions: tuple[int, int]) -> Scenario:
    """Return one that names regions by gpa and pages."""
    return Scenario(
        "s",
        tuple(SetUserMemoryRegion(1, gpa, pages * PAGE, Place("a")) for gpa, pages in regions),
        (Mapping("a", 1),),
        guest=Guest(gpa=0x10000),
    )


def reads(survey: Survey) -> list[int]:
    return [op.gpa for op in survey.round() if isinstance(op, Touch) and op.access == "read"]


def pages(*regions: tuple[int, int], limit: int = TOP) -> set[int]:
    return {gpa & -PAGE for gpa in reads(Survey(scenario(*regions), limit))}


def test_every_page_of_a_region_and_its_neighbours() -> None:
    for gpa in (0x100000, 5 * GIB, TOP // 2):
        assert pages((gpa, 2)) == {gpa - PAGE, gpa, gpa + PAGE, gpa + 2 * PAGE}


def test_the_borders_of_a_region_are_straddled() -> None:
    assert {gpa for gpa in reads(Survey(scenario((5 * GIB, 1)), TOP)) if gpa % PAGE != 0x40} == {
        5 * GIB - 2,
        5 * GIB + PAGE - 2,
    }


def test_it_goes_as_far_as_guests_reach() -> None:
    last = TOP - PAGE
    assert pages((last, 1)) == {last - PAGE, last}
    assert pages((TOP, 1)) == {last}
    assert pages((TOP + PAGE, 1)) == set()
    assert pages((REAL_MODE_END - PAGE, 2), limit=REAL_MODE_END) == {
        REAL_MODE_END - 2 * PAGE,
        REAL_MODE_END - PAGE,
    }


def test_the_guests_own_pages_are_spared() -> None:
    assert pages((0x20000, 1)) == {0x20000, 0x21000}


def test_a_large_region_is_visited_at_its_borders() -> None:
    step, count = 512 * PAGE, 10
    assert count * 512 > MAX_SURVEY_PAGES
    visited = pages((4 * step, count * 512))
    assert {border * step for border in range(4, 4 + count)} <= visited
    assert {border * step - PAGE for border in range(4, 5 + count)} <= visited
    assert len(visited) == 2 * (count + 1)


def test_a_region_of_some_pages_is_visited_where_a_word_of_its_log_ends() -> None:
    assert MAX_SURVEY_PAGES < 195
    first = 0x1007
    visited = {page // PAGE - first for page in pages((first * PAGE, 195))}
    assert visited == {-1, 0, 63, 64, 127, 128, 191, 192, 194, 195}


def test_a_region_that_no_kernel_takes_costs_nothing() -> None:
    visited = pages((8 * GIB, 1 << 40), (0x100000, 1))
    assert visited == {8 * GIB - PAGE, 8 * GIB, TOP - PAGE, 0xFF000, 0x100000, 0x101000}


def test_windows_are_bounded_and_what_is_named_first_is_kept() -> None:
    far = [(GIB * (5 + n), 1) for n in range(200)]
    visited = pages(*far, (0x100000, 1))
    windows = {page // WINDOW_STEP_BYTES for page in visited if page >= REAL_MODE_END}
    assert len(windows) == MAX_SURVEY_WINDOWS
    assert {5 * GIB, 6 * GIB, 0x100000} <= visited


def test_surveys_and_touches_together_fit_into_the_guests_windows() -> None:
    # One more is for an access over the border of 4 GiB.
    assert MAX_SURVEY_WINDOWS + 1 + MAX_TOUCHED_WINDOWS <= WINDOWS
    assert WINDOW_STEP_BYTES == GUEST_STEP


def test_64_bit_mode_is_wanted_where_something_reaches_beyond_4_gib() -> None:
    low = scenario((REAL_MODE_END - 2 * PAGE, 1))
    assert not needs_cpuid(low)
    assert needs_cpuid(scenario((REAL_MODE_END - PAGE, 1)))
    assert needs_cpuid(Scenario("s", (Touch(REAL_MODE_END - 1, width=2),)))
    assert not needs_cpuid(Scenario("s", (Execute(REAL_MODE_END - PAGE),)))


def test_an_access_out_of_reach_is_named() -> None:
    assert out_of_reach(Scenario("s", (Touch(TOP - 4),)), TOP) == ""
    assert "0xfffffffffffff" in out_of_reach(Scenario("s", (Touch(TOP - 4),)), TOP // 2)
    # Where a region lies is the kernel's to judge.
    assert out_of_reach(scenario((TOP, 1)), TOP // 2) == ""
