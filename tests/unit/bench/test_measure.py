"""How often a round repeats its work."""

import errno

import pytest

from vmm.bench import measure
from vmm.bench.library import Round
from vmm.scenario.endings import is_short


class _Clock:
    """A clock that stands still but for the work."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        return self.now

    def work(self, counted_ns: int, besides_ns: int = 0) -> Round:
        """Return work of which so much counts, and so much does not, each time."""

        def done(times: int) -> int:
            self.now += times * (counted_ns + besides_ns)
            return times * counted_ns

        return done


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """The clock that rounds are timed by."""
    clock = _Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


def test_a_round_lasts_long_enough_for_the_clock(clock: _Clock) -> None:
    assert measure.repetitions([clock.work(10_000)]) * 10_000 == measure.ROUND_NS


def test_what_only_the_first_round_waits_for_is_no_part_of_the_others(clock: _Clock) -> None:
    usual, waits = clock.work(10_000), iter([1_000_000_000])

    def first_waits(times: int) -> int:
        clock.now += next(waits, 0)
        return usual(times)

    assert measure.repetitions([first_waits]) * 10_000 == measure.ROUND_NS


def test_the_slower_way_says_how_often(clock: _Clock) -> None:
    times = measure.repetitions([clock.work(10_000), clock.work(40_000)])
    assert times * 40_000 == measure.ROUND_NS


def test_a_round_does_not_last_for_ever_with_what_it_does_not_count(clock: _Clock) -> None:
    times = measure.repetitions([clock.work(2_000, besides_ns=158_000)])
    assert times * 160_000 == measure.LONGEST_ROUND_NS


@pytest.mark.parametrize("cost_ns", [1, 10_000_000_000])
def test_times_have_limits_and_are_even(clock: _Clock, cost_ns: int) -> None:
    times = measure.repetitions([clock.work(cost_ns)])
    assert 16 <= times <= 20_000
    assert times % 2 == 0


def test_a_cpu_that_cannot_be_stayed_on_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned_to: list[set[int]] = []

    def pin(_: int, cpus: set[int]) -> None:
        if cpus == {0}:
            raise OSError(errno.EINVAL, "it has left")
        pinned_to.append(set(cpus))

    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr("os.sched_setaffinity", pin)
    with measure.pinned() as cpu:
        assert cpu == 1
    assert pinned_to == [{1}, {0, 1, 2}]


def test_without_a_cpu_to_stay_on_it_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(_: int, cpus: set[int]) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.sched_setaffinity", deny)
    with pytest.raises(OSError, match="no CPU to stay on") as error, measure.pinned():
        pass
    assert is_short(error.value)
