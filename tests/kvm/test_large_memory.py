"""Memory as large as a real machine's: what is not reached costs nothing, on the real kernel."""

import resource
from pathlib import Path

import pytest

from tests.traced import TRACES
from vmm.execution.hostmemory import HostMemory
from vmm.execution.probe.features import probe_features
from vmm.execution.runner import run_isolated
from vmm.kvm.system import Kvm
from vmm.replay.build import Replay
from vmm.replay.reader import read_trace
from vmm.scenario.content import page_bytes
from vmm.scenario.history import HostChange
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    ChangeHostMemory,
    HostWrite,
    Mapping,
    MappingKind,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status, judge

GIB = 1 << 30
PAGES = 16 * GIB // PAGE_SIZE_BYTES


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("kind", ["anonymous", "shared", "memfd", "thp"])
def test_only_what_is_reached_is_filled_and_watched(kind: MappingKind) -> None:
    before = resident_bytes()
    reached = (0, 1, 7, PAGES - 1)
    with HostMemory((Mapping("ram", PAGES, kind),), {"ram": reached}) as memory:
        assert resident_bytes() - before < 16 << 20
        assert list(memory.changes()) == []
        last = PAGES - 1
        assert memory.write(Place("ram", last * PAGE_SIZE_BYTES + 8), 0x11223344)
        (change,) = memory.changes()
        assert change == HostChange("ram", last * PAGE_SIZE_BYTES + 8, b"\x44\x33\x22\x11")
        drop = ChangeHostMemory(Place("ram", PAGE_SIZE_BYTES), PAGES - 1, "drop")
        memory.change(drop)
        changed = {each.offset // PAGE_SIZE_BYTES for each in memory.changes()}
        assert changed == ({1, 7, last} if kind in ("anonymous", "thp") else set())
        forbid = ChangeHostMemory(Place("ram"), PAGES, "forbid")
        if kind != "thp":
            memory.change(forbid)
            assert list(memory.changes()) == []


def test_identities_of_far_pages_are_their_own() -> None:
    assert page_bytes(0, 0) != page_bytes(0, 1 << 20)
    assert page_bytes(0, 3 << 20) != page_bytes(1, 3 << 20)


def test_a_q35_of_4_gib_runs_here_with_its_holes_and_its_true_sizes() -> None:
    trace = read_trace(TRACES / "qemu-q35-4g.strace.gz")
    with Kvm.open() as kvm:
        features = probe_features(kvm)
    scenario = Replay(trace, trace.vms[0], features).built.scenario
    assert sum(mapping.pages for mapping in scenario.mappings) > 4 * GIB // PAGE_SIZE_BYTES
    validate(scenario)
    verdict = judge(run_isolated(scenario, features, time_limit_s=120))
    assert verdict.status is Status.PASSED, verdict


@pytest.mark.parametrize("kind", ["anonymous", "memfd", "thp"])
def test_slots_of_many_gib_are_made_moved_and_surveyed(kind: MappingKind) -> None:
    low, high = Place("ram"), Place("ram", 2 * GIB)
    scenario = Scenario(
        "many-gib",
        (
            SetUserMemoryRegion(0, 0, 2 * GIB, low),
            SetUserMemoryRegion(1, 4 * GIB, 14 * GIB, high),
            ChangeHostMemory(Place("ram", GIB), GIB // PAGE_SIZE_BYTES, "drop"),
            Touch(5 * GIB + 0x123450, "write", value=0x1234),
            SetUserMemoryRegion(1, 5 * GIB, 14 * GIB, high),
            HostWrite(Place("ram", 3 * GIB), 7),
            Touch(6 * GIB),
            SetUserMemoryRegion(0),
            SetUserMemoryRegion(1),
        ),
        (Mapping("ram", PAGES, kind),),
    )
    if kind == "thp":
        scenario = Scenario(
            scenario.name,
            tuple(op for op in scenario.operations if not isinstance(op, HostWrite)),
            scenario.mappings,
        )
    validate(scenario)
    with Kvm.open() as kvm:
        features = probe_features(kvm)
    verdict = judge(run_isolated(scenario, features))
    assert verdict.status is Status.PASSED, verdict
