"""``Model.allowed`` answers, and changes nothing: only ``adopt`` does."""

import pickle
from typing import Any

import msgspec
import pytest

from tests.searched import composed
from vmm.catalogue import catalogue
from vmm.fuzz.generate.scenarios import generate
from vmm.model.allowed import Allowed
from vmm.model.model import Model
from vmm.scenario.features import Features
from vmm.scenario.history import Header
from vmm.scenario.operations import (
    AnyOperation,
    CreateIrqchip,
    Race,
    Scenario,
    SetIdentityMapAddr,
    Touch,
)
from vmm.scenario.plan import mappings_of, steps
from vmm.verdict.ideal import EVERYTHING, PLAIN

LOGS_READS = msgspec.structs.replace(EVERYTHING, reads_make_dirty=True)
KERNELS = (EVERYTHING, LOGS_READS, PLAIN)
ASKED = 12
"""So many states of a scenario are looked at, and in each so many operations are asked about."""


def snapshot(model: Model) -> bytes:
    """Return all that a model holds, however deep."""
    return pickle.dumps(model)


def told(allowed: tuple[Allowed, ...]) -> list[tuple[Any, str]]:
    return [(each.outcome, each.rule.name) for each in allowed]


def assert_pure(scenario: Scenario, features: Features) -> int:
    """Ask in some states of a scenario what is allowed; return how often that was."""
    plan = [step.operation for step in steps(scenario, features.touch_limit)]
    if any(isinstance(operation, Race) for operation in plan):
        return 0
    model = Model.of(Header(scenario, features))
    kinds: dict[type[AnyOperation], AnyOperation] = {}
    for operation in plan:
        kinds.setdefault(type(operation), operation)
    asked = 0
    for number, operation in enumerate(plan):
        if number % max(1, len(plan) // ASKED) == 0:
            before = snapshot(model)
            for each in (operation, *kinds.values()):
                first = told(model.allowed(each))
                assert told(model.allowed(each)) == first
                asked += 1
            assert snapshot(model) == before, (scenario.name, number)
        model.prefer(operation)
    return asked


@pytest.mark.parametrize("features", KERNELS)
def test_asking_changes_nothing_in_random_scenarios(features: Features) -> None:
    made = composed(40, PLAIN if features is PLAIN else EVERYTHING)
    assert sum(assert_pure(each, features) for each in made) > 1000


@pytest.mark.parametrize("features", KERNELS)
def test_asking_changes_nothing_in_curated_scenarios(features: Features) -> None:
    chosen = [each for each in catalogue(features) if not features.missing(each.needs)][::9]
    small = [each for each in chosen if sum(mapping.pages for mapping in each.mappings) <= 64]
    assert sum(assert_pure(each, features) for each in small) > 100


def test_a_snapshot_sees_what_changes() -> None:
    scenario = generate(1, EVERYTHING)
    model = Model.of(Header(scenario, EVERYTHING))
    before = snapshot(model)
    model.prefer(Touch(0x1000))
    assert snapshot(model) != before, "the vCPU that touches is made"


def test_asking_about_a_touch_makes_no_vcpu() -> None:
    scenario = Scenario("a", (SetIdentityMapAddr(0x1000),))
    model = Model(mappings_of(scenario), EVERYTHING)
    late = SetIdentityMapAddr(0x2000)
    model.allowed(Touch(0x5000))
    assert told(model.allowed(late))[0][1] == "identity-map"
    model.prefer(Touch(0x5000))
    assert told(model.allowed(late))[0][1] == "identity-map-late"


def test_the_first_access_of_a_vcpu_meets_what_it_brings() -> None:
    """The page of the identity map comes with the vCPU: what is in it is the kernel's affair."""
    model = Model((), EVERYTHING)
    assert model.allowed(Touch(0xFFFB_C000)) == ()
    assert model.allowed(Touch(0x5000)) != ()
    model.prefer(CreateIrqchip())
    assert model.allowed(Touch(0xFEE0_0000)) == ()
