"""How pages of a vCPU's file may be mapped, and how many page tables KVM may have."""

import errno

import pytest

from tests.ideal import FEATURES
from tests.modelled import only
from vmm.model.model import Model
from vmm.scenario.history import AnyOutcome, Done, Refused
from vmm.scenario.operations import (
    FIRST_RING_PAGE as RING,
    AnyOperation,
    EnableCap,
    Mapping,
    MapVcpuPages,
    Scenario,
    SetNrMmuPages,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate

EINVAL, EPERM = Refused(errno.EINVAL), Refused(errno.EPERM)
TWO_PAGES = EnableCap("DIRTY_LOG_RING", 0x2000)


def outcomes(operation: AnyOperation, *before: AnyOperation) -> list[AnyOutcome]:
    model = Model((Mapping("a", 1),), FEATURES)
    for each in before:
        only(model, each)
    return [choice.outcome for choice in model.allowed(operation)]


@pytest.mark.parametrize(
    ("first", "pages"), [(RING, 1), (RING, 2), (0, RING + 1), (RING + 1, 1), (RING + 1, 9)]
)
def test_a_mapping_that_begins_or_ends_in_a_ring_is_shared(first: int, pages: int) -> None:
    assert outcomes(MapVcpuPages(first, pages), TWO_PAGES) == [Done()]
    private = MapVcpuPages(first, pages, "private")
    assert outcomes(private, TWO_PAGES) == [EINVAL]
    assert outcomes(private) == [Done()]
    executable = MapVcpuPages(first, pages, executable=True)
    assert outcomes(executable, TWO_PAGES) == [EINVAL, EPERM]
    assert outcomes(executable) == [Done(), EPERM]


@pytest.mark.parametrize(("first", "pages"), [(0, 1), (RING - 1, 1), (RING + 2, 1)])
def test_a_mapping_beside_a_ring_may_be_private(first: int, pages: int) -> None:
    assert outcomes(MapVcpuPages(first, pages, "private"), TWO_PAGES) == [Done()]


def test_a_mapping_around_a_whole_ring_may_be_refused() -> None:
    private = MapVcpuPages(RING - 1, 4, "private")
    assert outcomes(private, TWO_PAGES) == [Done(), EINVAL]


@pytest.mark.parametrize(("pages", "outcome"), [(0, EINVAL), (63, EINVAL), (64, Done())])
def test_kvm_has_64_page_tables_or_more(pages: int, outcome: AnyOutcome) -> None:
    assert outcomes(SetNrMmuPages(pages)) == [outcome]


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        (MapVcpuPages(-1), "first_page"),
        (MapVcpuPages(0, 0), "pages"),
        (MapVcpuPages(0, 1 << 20), "pages"),
        (MapVcpuPages(vcpu=1), "vcpu"),
        (SetNrMmuPages(-1), "pages"),
        (SetNrMmuPages(1 << 32), "pages"),
    ],
)
def test_what_cannot_be_is_named(operation: AnyOperation, field: str) -> None:
    with pytest.raises(ScenarioError, match=rf"\$\.operations\[0\]\.{field}: "):
        validate(Scenario("pages", (operation,)))
