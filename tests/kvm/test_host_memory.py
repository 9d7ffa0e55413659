"""Every short sequence of the host's own changes to memory under a slot, by model and kernel."""

from itertools import product

import msgspec
import pytest

from vmm.execution.probe.features import probe_features
from vmm.fuzz.trial import attempt
from vmm.kvm.system import Kvm
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    ChangeHostMemory,
    HostChangeKind,
    Mapping,
    MappingKind,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status

PAGE = PAGE_SIZE_BYTES
LENGTH = 3
CHANGES: tuple[HostChangeKind, ...] = ("drop", "punch", "unmap", "map", "forbid", "allow")


def scenario_of(kind: MappingKind, changes: tuple[HostChangeKind, ...]) -> Scenario:
    """Return changes of the middle page of three, each with a look at all and a write."""
    operations: list[AnyOperation] = [SetUserMemoryRegion(1, 0, 3 * PAGE, Place("a"))]
    for number, how in enumerate(changes):
        operations.append(Touch(PAGE + 0x20, "write", value=number + 1))
        operations.append(ChangeHostMemory(Place("a", PAGE), 1, how))
        operations += [Touch(page * PAGE + 0x20) for page in range(3)]
    return Scenario("host", tuple(operations), (Mapping("a", 3, kind),), survey="none")


@pytest.mark.parametrize(("kind", "legal"), [("anonymous", 125), ("shared", 64), ("memfd", 188)])
def test_slots_follow_whatever_the_host_does(kvm: Kvm, kind: MappingKind, legal: int) -> None:
    features = probe_features(kvm)
    tried = 0
    for changes in product(CHANGES, repeat=LENGTH):
        scenario = scenario_of(kind, changes)
        try:
            validate(scenario)
        except ScenarioError:
            continue
        tried += 1
        verdict = attempt(kvm, scenario, features).verdict
        assert verdict.status is Status.PASSED, (changes, verdict)
    assert tried == legal


OTHERS: tuple[HostChangeKind, ...] = (
    "write_protect",
    "map_fresh",
    "map_file",
    "drop",
    "map",
    "allow",
)


@pytest.mark.parametrize("kind", ["anonymous", "memfd", "private_file"])
def test_slots_follow_other_memory_in_their_place(kvm: Kvm, kind: MappingKind) -> None:
    features = probe_features(kvm)
    for changes in product(OTHERS, repeat=2):
        scenario = scenario_of(kind, changes)
        operations = tuple(_with_source(op) for op in scenario.operations)
        mappings = (*scenario.mappings, Mapping("file", 2, "memfd"))
        scenario = msgspec.structs.replace(scenario, operations=operations, mappings=mappings)
        validate(scenario)
        verdict = attempt(kvm, scenario, features).verdict
        assert verdict.status is Status.PASSED, (changes, verdict)


def _with_source(op: AnyOperation) -> AnyOperation:
    if not isinstance(op, ChangeHostMemory) or op.how != "map_file":
        return op
    return msgspec.structs.replace(op, source=Place("file", PAGE))
