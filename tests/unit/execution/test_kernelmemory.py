"""Growth of the kernel's memory: what leaks is found, and noise is not."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from vmm.execution.kernelmemory import (
    ADDRESSES,
    ALL,
    EVENTFDS,
    PAGES,
    ROUNDS,
    TOLERANCE_BYTES,
    VCPUS,
    growth,
    read_counters,
)
from vmm.kvm.memory import HostMapping

TIMES = 400
SHARE = TIMES // ROUNDS


class Kernel:
    """Counts turns, and answers with readings that depend on them or are given."""

    def __init__(self, sizes: Callable[[int], int], noise: Iterable[int] = ()) -> None:
        self.turns = 0
        self._sizes = sizes
        self._noise = iter(noise)

    def turn(self) -> None:
        self.turns += 1

    def read(self) -> dict[str, int]:
        return {"SUnreclaim": self._sizes(self.turns) + next(self._noise, 0), "Percpu": 7}


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.execution.kernelmemory.time.sleep", lambda _: None)


def found(kernel: Kernel) -> tuple[str, ...]:
    return growth(kernel.turn, TIMES, kernel.read)


def test_what_grows_each_time_is_found_with_its_size() -> None:
    (text,) = found(Kernel(lambda turns: 5000 + 1400 * turns))
    assert text == "SUnreclaim of /proc/meminfo grows by 1400 bytes each time"


def test_leak_is_found_under_noise_that_is_smaller() -> None:
    noise = (0, 20_000, -20_000, 9000) * 9
    (text,) = found(Kernel(lambda turns: 3000 * turns, noise))
    assert "grows by" in text


@pytest.mark.parametrize(
    "noise",
    [
        (0, 99_000_000) * 20,
        (0, -5000, -9000, -99_000, 400_000, 399_000),
        # What the work takes is freed late, during the wait.
        (0, 10**6, 0) * 30,
        # Others allocate all the time, or during the work of the first attempt only.
        tuple(10**6 * reading for reading in range(90)),
        tuple(10**6 * min((reading + 2) // 3, ROUNDS + 1) for reading in range(90)),
    ],
)
def test_noise_is_no_leak(noise: tuple[int, ...]) -> None:
    assert found(Kernel(lambda _: 0, noise)) == ()


def test_what_is_allocated_once_is_no_leak() -> None:
    assert found(Kernel(lambda turns: 10**6 if turns else 0)) == ()


def test_growth_below_the_tolerance_is_no_leak() -> None:
    assert found(Kernel(lambda turns: TOLERANCE_BYTES // SHARE * turns)) == ()


def test_every_round_has_its_share_and_a_good_kernel_is_asked_once() -> None:
    kernel = Kernel(lambda _: 0)
    found(kernel)
    assert kernel.turns == TIMES + SHARE


def test_this_kernel_has_most_of_the_counters() -> None:
    counters = read_counters()
    assert set(counters) <= set(ALL)
    assert {PAGES, EVENTFDS} <= set(counters)
    assert counters["SUnreclaim"] > 0


def test_what_this_process_maps_is_counted() -> None:
    before = read_counters()
    with HostMapping.reserved(64 << 20):
        assert read_counters()[ADDRESSES] - before[ADDRESSES] >= 64 << 20


def test_addresses_that_are_lost_are_named_by_their_own_file() -> None:
    kernel = Kernel(lambda _: 0)
    grown = growth(kernel.turn, TIMES, lambda: {ADDRESSES: 4096 * kernel.turns})
    assert grown == ("VmSize of /proc/self/status grows by 4096 bytes each time",)


def test_vcpus_that_stay_are_found_while_others_free_more_than_they_take() -> None:
    vcpu_bytes = 11 << 10
    kernel = Kernel(lambda turns: -(10**6) * turns)

    def read() -> dict[str, int]:
        return {**kernel.read(), VCPUS: vcpu_bytes * (kernel.turns // 25)}

    (text,) = growth(kernel.turn, TIMES, read)
    assert text == f"kvm_vcpu of /proc/slabinfo grows by {vcpu_bytes // 25} bytes each time"


def test_what_vcpus_take_is_read_where_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slabinfo = tmp_path / "slabinfo"
    monkeypatch.setattr("vmm.execution.kernelmemory._SLABINFO", slabinfo)
    assert VCPUS not in read_counters()
    slabinfo.write_text(
        "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize> <objperslab>\n"
        "kvm_vcpu 20 24 51488 1 16 : tunables 0 0 0 : slabdata 20 20 0\nfiles_cache 1 2 3 4\n"
    )
    assert read_counters()[VCPUS] == 20 * 51488
    slabinfo.write_text("slabinfo - version: 2.1\n")
    assert VCPUS not in read_counters()


def test_eventfds_that_are_held_are_counted_by_their_numbers() -> None:
    kernel = Kernel(lambda turns: 0)

    def read() -> dict[str, int]:
        return {**kernel.read(), EVENTFDS: 5 + 2 * kernel.turns}

    (text,) = growth(kernel.turn, TIMES, read)
    assert text == "eventfd-id of /proc/self/fdinfo grows by 2 each time"


def test_an_eventfd_in_every_other_turn_is_not_none_each_time() -> None:
    kernel = Kernel(lambda turns: 0)

    def read() -> dict[str, int]:
        return {**kernel.read(), EVENTFDS: 5 + kernel.turns // 2}

    (text,) = growth(kernel.turn, TIMES, read)
    assert text == "eventfd-id of /proc/self/fdinfo grows by 0.5 each time"


def test_a_new_eventfd_has_the_least_number_that_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_counters()[EVENTFDS]
    held = [os.eventfd(0) for _ in range(64)]
    during = read_counters()[EVENTFDS]
    for each in held:
        os.close(each)
    assert during > before
    monkeypatch.setattr("vmm.execution.kernelmemory._DESCRIPTORS", tmp_path)
    for number in range(64):
        (tmp_path / str(number)).write_text("pos:\t0\neventfd-count:                0\n")
    assert EVENTFDS not in read_counters()
