"""Results of benchmarks: their files, what changed beyond the noise, and growth in words."""

import msgspec
import pytest

from vmm.bench.measure import Cost, Point, Sample, point_of, shares
from vmm.bench.result import Bench, BenchFileError, bench_of, changes, growth, text_of
from vmm.bench.setup import Setup
from vmm.bench.table import compared, elsewhere, table


def point(us: float, slots: int = 8, spread: float = 0.1) -> Point:
    """Return what a creation cost: a median, and a middle half around it."""
    cost = Cost(us, us - spread, us + spread)
    return Point(Setup("create", slots), 9, cost, cost, 1.0)


def bench(*points: Point) -> Bench:
    """Return a result."""
    return Bench("6.18", "kvm_amd", "a processor", 0, points)


def test_a_result_survives_its_file() -> None:
    written = bench(point(3.0), point(5.0, slots=100))
    assert bench_of(text_of(written).encode()) == written


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no result of `vmm bench --json`"),
        (b"[]", "no result of `vmm bench --json`"),
        (b"[" * 100_000, "no result of `vmm bench --json`"),
        (b'{"a": "\xff"}', "no result of `vmm bench --json`"),
        (b'{"format": true}', "no result of `vmm bench --json`"),
        (b'{"format": 2, "more": 1}', "format 2 is newer than 1"),
        (text_of(bench(point(3.0))).replace("3.0", "0.0").encode(), "a number of microseconds"),
        (text_of(bench(point(3.0))).replace('"slots": 8', '"slots": -1').encode(), "-1 slots"),
    ],
)
def test_a_file_that_is_no_result_says_why(data: bytes, why: str) -> None:
    with pytest.raises(BenchFileError, match=why):
        bench_of(data)


@pytest.mark.parametrize(
    ("before", "after", "beyond"),
    [
        (point(10.0), point(12.0), True),
        (point(12.0), point(10.0), True),
        (point(10.0), point(10.4), False),  # Apart, but by less than 5 %.
        (point(10.0, spread=3), point(12.0, spread=3), False),  # The middle halves overlap.
        (point(10.0, spread=3), point(11.5, spread=0.1), False),  # One lies inside the other.
    ],
)
def test_noise_is_told_from_a_change(before: Point, after: Point, beyond: bool) -> None:
    (change,) = changes(bench(before), bench(after))
    assert change.is_beyond_noise is beyond
    assert change.factor == after.library.median / before.library.median


@pytest.mark.parametrize(
    ("cost", "cpu", "beyond"),
    [
        (18.0, 18.0, False),  # The CPU alone explains it,
        (5.0, 5.0, False),
        (12.0, 18.0, False),  # and even more.
        (20.0, 18.0, True),
        (10.2, 5.0, False),  # What a faster CPU hides is not known.
        (12.0, 5.0, True),
        (5.0, 18.0, True),
    ],
)
def test_what_the_cpu_itself_explains_is_no_change(cost: float, cpu: float, beyond: bool) -> None:
    before, after = with_cpu(point(10.0), 10.0), with_cpu(point(cost), cpu)
    (change,) = changes(bench(before), bench(after))
    assert (change.is_beyond_noise, change.cpu_factor) == (beyond, cpu / 10.0)


def with_cpu(measured: Point, us: float) -> Point:
    return msgspec.structs.replace(measured, yardstick=Cost(us, us, us))


@pytest.mark.parametrize(
    ("cpu", "line"),
    [
        ((10.0, 18.0), "the CPU itself was up to 80 % slower: so much of a change is not counted"),
        ((10.0, 5.0), "the CPU itself was up to 50 % quicker: so much of a change is not counted"),
        ((10.0, 10.4), "0 of 2 measurements changed beyond the noise"),
    ],
)
def test_a_cpu_that_was_not_as_fast_is_told(cpu: tuple[float, float], line: str) -> None:
    points = [point(10.0, slots=slots) for slots in (1, 2)]
    old = bench(*(with_cpu(each, 10.0) for each in points))
    new = bench(*(with_cpu(each, us) for each, us in zip(points, cpu, strict=True)))
    assert list(compared(changes(old, new)))[-1] == line


def test_the_rounds_of_a_setup_are_spread_over_the_run() -> None:
    assert [shares(rounds) for rounds in (3, 8, 9)] == [[2, 1], [4, 4], [5, 4]]
    taken = [Sample(us, us / 2, 7.0) for us in (10.0, 10.0, 30.0, 30.0)]
    measured = point_of(Setup("nop"), taken)
    assert (measured.library.low, measured.library.high) == (10.0, 30.0)
    assert (measured.rounds, measured.ratio) == (4, 2.0)
    assert point_of(Setup("nop"), [Sample(1.0, None, 7.0)] * 3).c is None


def test_only_the_same_setup_is_compared() -> None:
    assert changes(bench(point(1.0, slots=1)), bench(point(9.0, slots=2))) == []


def test_what_became_slower_and_quicker_is_said() -> None:
    old = bench(point(10.0, slots=1), point(10.0, slots=2), point(10.0, slots=3))
    new = bench(point(15.0, slots=1), point(5.0, slots=2), point(10.0, slots=3))
    lines = list(compared(changes(old, new)))
    assert lines == [
        "slower by 50 %: create with 1 slot of 64 pages: 10.00 -> 15.00 us",
        "quicker by 50 %: create with 2 slots of 64 pages: 10.00 -> 5.00 us",
        "2 of 3 measurements changed beyond the noise",
    ]


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ((10.0, 10.05, 9.9, 10.1), "does not grow from 1 to 1000 slots"),
        ((10.0, 10.2, 10.3, 10.4), "does not grow from 1 to 1000 slots"),
        ((10.0, 15.0, 20.0, 25.0), "like its logarithm: 2.50 times from 1 to 1000 slots"),
        ((1.0, 3.2, 10.0, 32.0), "grows more slowly than the number of slots: 32.00 times"),
        ((1.0, 10.0, 100.0, 1000.0), "grows in proportion to the number of slots: 1000.00 times"),
    ],
)
def test_growth_is_said_in_words(costs: tuple[float, ...], words: str) -> None:
    points = [point(us, 10**power, spread=0.1) for power, us in enumerate(costs)]
    (line,) = growth(points)
    assert words in line


@pytest.mark.parametrize(
    ("spread", "words"),
    [(4.0, "does not grow beyond the noise from 1 to 10 slots"), (3.0, "like its logarithm: 1.70")],
)
def test_what_the_noise_explains_is_no_growth(spread: float, words: str) -> None:
    (line,) = growth([point(10.0, 1, spread), point(17.0, 10, spread)])
    assert words in line


def test_one_number_of_slots_shows_no_growth() -> None:
    assert growth([point(1.0), msgspec.structs.replace(point(1.0), rounds=5)]) == []


def test_the_table_fits_sixty_columns() -> None:
    lines = list(table(bench(point(123456.78, 32764, spread=1000), point(999.99, 1, spread=0.5))))
    assert len(lines) == 6
    assert all(len(line) <= 60 for line in lines[:4])
    assert lines[2].split() == ["create", "32764", "123457", "122457..124457", "123457", "1.00"]


def test_a_slots_whole_life_is_told_next_to_c() -> None:
    created = point(10.0)
    both = msgspec.structs.replace(
        created, setup=msgspec.structs.replace(created.setup, work="both"), ratio=1.25
    )
    assert list(table(bench(created, both)))[-1] == "create and delete, with 8 slots: 1.25 times C"
    assert len(list(table(bench(created)))) == 3


@pytest.mark.parametrize(
    ("slots", "pages", "vcpus", "why"),
    [
        (8, 0, 1, "1 to 262144 pages"),
        (8, 1 << 31, 1, "1 to 262144 pages"),
        (30_000, 1024, 1, "more than 16777216 pages together"),
        (8, 64, 0, "1 to 64 vCPUs"),
    ],
)
def test_a_setup_that_would_cost_the_host_too_much_is_refused(
    slots: int, pages: int, vcpus: int, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        Setup("create", slots, pages, vcpus)


def test_a_result_of_another_kernel_is_named() -> None:
    here = bench(point(1.0))
    assert list(elsewhere(here, here)) == []
    there = msgspec.structs.replace(here, kernel="5.10")
    (line,) = elsewhere(there, here)
    assert line.startswith("compared with Linux 5.10, ")
