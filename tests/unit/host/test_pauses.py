"""Time in which a process could not run is counted apart."""

import pytest

from vmm.host.pauses import LOOK_EVERY_S, Pauses


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_looks_that_are_in_time_count_nothing(clock: list[float]) -> None:
    pauses = Pauses()
    for _ in range(10):
        clock[0] += LOOK_EVERY_S
        assert pauses.look(lambda: False) == 0
    assert (pauses.seconds, pauses.stopped_s) == (0, 0)


def test_a_look_that_comes_late_was_a_pause_of_this_process(clock: list[float]) -> None:
    pauses = Pauses()
    clock[0] += 60 + LOOK_EVERY_S
    assert pauses.look(lambda: False) == 60
    assert (pauses.seconds, pauses.stopped_s) == (60, 0)


def test_a_child_that_is_stopped_is_counted_as_far_as_this_process_saw_it(
    clock: list[float],
) -> None:
    pauses = Pauses()
    for _ in range(20):
        clock[0] += 0.5
        pauses.look(lambda: True)
    assert (pauses.seconds, pauses.stopped_s) == (10, 10)
    clock[0] += 60.5
    pauses.look(lambda: True)
    assert (pauses.seconds, pauses.stopped_s) == (70.5, 10.5)
    pauses.reset()
    assert (pauses.seconds, pauses.stopped_s) == (0, 0)


def test_many_looks_in_a_row_ask_seldom_and_lose_nothing(clock: list[float]) -> None:
    asked: list[float] = []

    def is_stopped() -> bool:
        asked.append(clock[0])
        return True

    pauses = Pauses()
    for _ in range(1000):
        clock[0] += 0.001
        pauses.look(is_stopped)
    assert 0 < len(asked) <= 4
    assert pauses.stopped_s > 0.7
