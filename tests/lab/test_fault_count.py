"""The wrong kernel goes wrong in what guests and hosts do, and the search finds that by itself."""

from tests.lab.fault_count import counts

FEWEST = 5


def test_each_kind_has_faults_that_curated_scenarios_catch() -> None:
    for count in counts():
        assert len(count.faults) >= FEWEST, count.kind
        assert count.faults == count.caught, count.kind
    assert sum(len(count.faults) for count in counts()) >= 200


def test_the_search_finds_faults_of_many_kinds_without_curated_scenarios() -> None:
    found = [count for count in counts() if count.found]
    assert sum(len(count.found) for count in found) >= 15
    assert len(found) >= FEWEST
