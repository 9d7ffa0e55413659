"""What a scenario takes is known from the whole of it, before anything runs, in linear time."""

import time
from contextlib import suppress

import msgspec
import pytest

from vmm.catalogue import catalogue
from vmm.scenario.codec import FileError, parse_scenario, scenario_text
from vmm.scenario.demand import LARGE, USUAL, Demand, Limits, demand
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    AnyOperation,
    ChangeHostMemory,
    Churn,
    CreateGuestMemfd,
    EnableCap,
    GetDirtyLog,
    GuestThread,
    HostThread,
    Inspect,
    Lives,
    MapGuestMemfd,
    Mapping,
    Place,
    PreFaultMemory,
    Race,
    Scenario,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Sweep,
    Touch,
)
from vmm.scenario.reached import SPARSE_PAGES
from vmm.verdict.ideal import EVERYTHING

MIB = 1 << 20
PAGES = 1 << 14
HOST = (Mapping("a", PAGES),)
SLOT = SetUserMemoryRegion(1, 1 << 30, PAGES << 12, Place("a"), 1)
FILE = CreateGuestMemfd("f", 1 << 30)


def of(*operations: AnyOperation, mappings: tuple[Mapping, ...] = HOST) -> Demand:
    return demand(Scenario("s", operations, mappings, survey="none", vcpus=2))


def without(taken: Demand, base: Demand) -> tuple[float, float]:
    """Return how many MiB and seconds more something takes."""
    return (taken.memory_bytes - base.memory_bytes) / MIB, taken.seconds - base.seconds


@pytest.mark.parametrize("features", [Features(), EVERYTHING], ids=["usual", "everything"])
def test_every_curated_scenario_is_within_the_usual_limits(features: Features) -> None:
    beyond = {
        scenario.name: problem
        for scenario in catalogue(features)
        if (problem := demand(scenario).problem(USUAL))
    }
    assert beyond == {}


@pytest.mark.parametrize(
    ("operations", "mib", "seconds"),
    [
        ((SLOT,), 0.2, 0.01),
        ((SLOT, GetDirtyLog(1)), 1.1, 0.02),
        ((ChangeHostMemory(Place("a"), PAGES),), 64 * 6, 2.0),
        ((Lives("killed", 1000),), 0, 50.0),
        ((Lives("closed", 1000, "kernel"),), 0, 20.0),
        ((Churn(1, 10_000),), 0, 50.0),
        ((Sweep(0, 0x4000, width=1),), 1.0, 0.1),
        ((SetMemoryAttributes(0, 1 << 30),), 16.0, 0.2),
        ((SLOT, PreFaultMemory(0, 1 << 60)), 0, 0.04),
        ((Race(guests=(GuestThread((Touch(0),) * 4, 100_000),)),), 65.0, 10.0),
        ((Race((HostThread((SLOT,), 1000),), (GuestThread((Touch(0),), 1),)),), 1.0, 10.0),
    ],
)
def test_each_operation_counts(
    operations: tuple[AnyOperation, ...], mib: float, seconds: float
) -> None:
    more_mib, more_s = without(of(*operations), of())
    assert more_mib >= mib
    assert more_s >= seconds


def test_mappings_count_by_kind() -> None:
    base = of(mappings=())
    for kind in ("anonymous", "shared", "memfd", "hugetlb", "thp"):
        assert without(of(mappings=(Mapping("a", 512, kind),)), base)[0] >= 4
    assert without(of(mappings=(Mapping("a", 512, "unmapped"),)), base)[0] == 0


def test_a_guest_memfd_counts_where_it_is_mapped_or_mapped_ahead() -> None:
    window = (Mapping("w", PAGES, "guest_memfd"), Mapping("b", PAGES, "unmapped"))
    bound = SetUserMemoryRegion2(1, 0, PAGES << 12, Place("b"), 4, guest_memfd="f")
    base = of(FILE, mappings=window)
    assert without(of(FILE, bound, mappings=window), base)[0] < 2
    assert without(of(FILE, MapGuestMemfd("f", "w"), mappings=window), base)[0] >= 64
    assert without(of(FILE, bound, PreFaultMemory(0, 1 << 40), mappings=window), base)[0] >= 64


def test_surveys_and_looks_count() -> None:
    many = tuple(msgspec.structs.replace(SLOT, slot=n, memory_size=0x1000) for n in range(2, 50))
    surveyed = demand(Scenario("s", many * 10, HOST))
    assert without(surveyed, of(*many * 10))[1] > 1
    looks = (Touch(0, "write"), Inspect()) * 100
    assert without(of(*looks), of(*looks, mappings=()))[1] > 1


def test_a_region_that_every_kernel_refuses_takes_nothing() -> None:
    refused = msgspec.structs.replace(SLOT, memory_size=1 << 50)
    assert without(of(refused), of())[0] < 1


def test_what_is_beyond_is_refused_with_the_number_and_the_limit() -> None:
    text = scenario_text(Scenario("s", (Lives("killed", 10_000),))).encode()
    with pytest.raises(FileError) as caught:
        parse_scenario(text, "f")
    assert str(caught.value) == (
        "f: $: may take 500 s, and the limit is 60 s; --allow-large allows more"
    )
    assert parse_scenario(text, "f", LARGE).name == "s"
    with pytest.raises(FileError, match=r"may take 500 s, and the limit is 1 s; --allow"):
        parse_scenario(text, "f", Limits(1 << 40, 1.0))
    filled = tuple(Mapping(name, SPARSE_PAGES) for name in "abcdefgh")
    text = scenario_text(Scenario("s", (), filled)).encode()
    with pytest.raises(FileError, match=r"may take 15\d\d MiB of memory, and the limit is 1024 "):
        parse_scenario(text, "f")


def test_pages_that_may_show_something_else_count_each_time() -> None:
    unmap = ChangeHostMemory(Place("a"), SPARSE_PAGES, "unmap")
    forbid = ChangeHostMemory(Place("a"), SPARSE_PAGES, "forbid")
    memory = (Mapping("a", SPARSE_PAGES, "memfd"),)
    seconds = [
        demand(Scenario("s", (op,) * 300, memory, survey="none")).seconds for op in (forbid, unmap)
    ]
    assert seconds[0] < 10
    assert seconds[1] > 60


MANY = 20_000


def first(op: SetUserMemoryRegion, number: int) -> SetUserMemoryRegion:
    return msgspec.structs.replace(op, slot=number % 300, guest_phys_addr=number << 21)


SMALL = msgspec.structs.replace(SLOT, memory_size=1 << 20)
LONG: dict[str, tuple[AnyOperation, ...]] = {
    "unmaps": (ChangeHostMemory(Place("a"), PAGES, "unmap"),) * MANY,
    "slots": tuple(first(SLOT, number) for number in range(MANY)),
    "caps": (EnableCap("DIRTY_LOG_RING", 4096),) * MANY,
    "race": (
        Race(
            tuple(
                HostThread(
                    (first(msgspec.structs.replace(SLOT, memory_size=1 << 20), slot),) * MANY
                )
                for slot in (1, 2)
            ),
            (GuestThread((Touch(0),)),),
        ),
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_file_is_refused_or_taken_in_linear_time(name: str) -> None:
    text = scenario_text(Scenario(name, LONG[name], (Mapping("a", PAGES, "memfd"),))).encode()
    start = time.process_time()
    with suppress(FileError):
        parse_scenario(text, "f")
    assert time.process_time() - start < 5
