"""What a scenario needs without saying so is found in its content."""

import msgspec
import pytest

from vmm.scenario.features import Features
from vmm.scenario.operations import Lives, Mapping, Scenario, SetUserMemoryRegion
from vmm.scenario.requirements import missing

REGION = SetUserMemoryRegion(1, 0x10000, 0x1000)


@pytest.mark.parametrize(
    ("scenario", "features", "lacking"),
    [
        (Scenario("s", (REGION,)), Features(), ""),
        (Scenario("s", (), (Mapping("a", 512, "hugetlb"),)), Features(), "a free 2 MiB huge page"),
        (
            Scenario("s", (), (Mapping("a", 1024, "hugetlb_memfd"),)),
            Features(hugetlb_pages=1),
            "2 free 2 MiB huge pages",
        ),
        (
            Scenario("s", (), (Mapping("a", 1024, "hugetlb"),)),
            Features(hugetlb_pages=1),
            "2 free 2 MiB huge pages (here 1 are free)",
        ),
        (Scenario("s", (), (Mapping("a", 1024, "hugetlb"),)), Features(hugetlb_pages=2), ""),
        (Scenario("s", (), (Mapping("a", 1, "zero"),)), Features(), "the right to map virtual"),
        (
            Scenario("s", (msgspec.structs.replace(REGION, fail_nth=1),)),
            Features(),
            "failing allocations",
        ),
        (Scenario("s", (Lives("killed"),)), Features(process_files=False), "/proc/self/maps"),
        (Scenario("s", (Lives("killed"),)), Features(), ""),
        (Scenario("s", (), needs=("pre_fault",)), Features(), "KVM_CAP_PRE_FAULT_MEMORY"),
    ],
)
def test_what_is_missing(scenario: Scenario, features: Features, lacking: str) -> None:
    found = missing(scenario, features)
    assert found.startswith(lacking)
    assert bool(found) == bool(lacking)
