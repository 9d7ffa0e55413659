"""Huge pages that are set aside for as long as a test takes, by who may do that."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import lab
from tests.lab.player import Player
from vmm import curated_scenarios, features_here, run_scenario
from vmm.verdict.judge import Status

_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_WANTED = 16
_SCENARIOS = ("create-on-a-memfd-of-huge-pages", "create-on-hugetlb", "follow-punched-huge-pages")


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Set 16 huge pages aside, and give back what was not there before."""
    pool = _POOL / "nr_hugepages"
    try:
        before = pool.read_text()
        pool.write_text(str(int(before) + _WANTED))
    except OSError as error:
        pytest.skip(f"no huge pages can be set aside here: {error}")
    try:
        if int((_POOL / "free_hugepages").read_text()) < _WANTED:
            pytest.skip("there are no 16 huge pages free")
        yield
    finally:
        pool.write_text(before)


@pytest.mark.usefixtures("huge_pages")
def test_memory_of_huge_pages_is_reached_and_punched() -> None:
    assert features_here().hugetlb_pages >= _WANTED
    for name in _SCENARIOS:
        (scenario,) = curated_scenarios(name)
        assert run_scenario(scenario).verdict.status is Status.PASSED, name


@pytest.mark.usefixtures("huge_pages")
def test_a_kernel_that_is_wrong_about_it_is_caught() -> None:
    assert "host-change-missed-in-the-middle" in {fault.name for fault in lab.faults()}
    with Player() as player:
        answer = player.play("host-change-missed-in-the-middle", "follow-punched-huge-pages")
    assert answer.startswith("differs "), answer
