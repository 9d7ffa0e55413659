"""Random scenarios are valid, the same for the same seed, and reach what they are meant to."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from scenarios import catalogue
from tests.ideal import FEATURES, ideal_history
from vmm.fuzz.dice import Dice, seed_of
from vmm.fuzz.generate import generate
from vmm.fuzz.mutate import can_be_mutated
from vmm.memslots.check import Status, judge
from vmm.memslots.codec import scenario_text
from vmm.memslots.features import Features
from vmm.memslots.ideal import EVERYTHING
from vmm.memslots.operations import (
    Execute,
    GetDirtyLog,
    HostWrite,
    NewVm,
    Scenario,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Sweep,
    Touch,
)
from vmm.memslots.validate import validate

OLD = Features(
    nr_memslots=509, address_spaces=2, readonly_mem=False, last_gfn=(1 << 24) - 1, sync_mmu=False
)
BASES = tuple(s for s in catalogue(FEATURES) if can_be_mutated(s, FEATURES))


def some(count: int, features: Features = FEATURES) -> list[Scenario]:
    return [generate(seed_of(7, number), features, BASES) for number in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, (1 << 64) - 1), st.sampled_from((FEATURES, OLD)))
def test_every_scenario_is_valid(seed: int, features: Features) -> None:
    validate(generate(seed, features, BASES))


def test_a_seed_gives_the_same_scenario_again() -> None:
    assert some(20) == some(20)


def test_a_seed_gives_the_same_scenario_on_every_machine() -> None:
    text = "".join(scenario_text(generate(seed_of(1, n), FEATURES)) for n in range(50))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    # Who changes what is generated changes this, too: old seeds then mean something else.
    assert digest == "c1b8d54a16d25eaa"


def test_chance_is_made_of_what_python_promises_to_keep() -> None:
    dice = Dice(42)
    assert [dice.below(1000) for _ in range(4)] == [639, 25, 275, 223]


def test_seeds_of_a_run_differ() -> None:
    seeds = {seed_of(run, number) for run in range(20) for number in range(500)}
    assert len(seeds) == 20 * 500


def test_an_ideal_kernel_passes_them_all() -> None:
    for scenario in some(20):
        verdict = judge(ideal_history(scenario))
        assert verdict.status is Status.PASSED, verdict


def test_every_operation_comes_up() -> None:
    kinds = Counter(type(op) for scenario in some(150) for op in scenario.operations)
    wanted = {Touch, Sweep, Execute, HostWrite, GetDirtyLog, NewVm}
    assert wanted | {SetUserMemoryRegion, SetUserMemoryRegion2} <= set(kinds)


def test_every_kind_of_change_and_refusal_comes_up() -> None:
    rules: set[str] = set()
    for scenario in some(110):
        rules.update(judge(ideal_history(scenario)).rules)
    assert rules >= {
        "create", "delete", "move", "flags-only", "no-change", "overlap", "immutable",
        "delete-absent", "gfn-limit", "gpa-aligned", "size-aligned", "hva-user", "slot-id-range",
        "address-space-range", "first-form-flags", "gpa-wraps", "too-many-pages", "bad-pointer",
        "foreign-process", "reach", "hole", "straddle", "readonly", "dirty-exact", "dirty-absent",
    }  # fmt: skip


def test_where_there_is_smm_guests_look_at_both_address_spaces() -> None:
    scenarios = some(40, EVERYTHING)
    inside = [s for s in scenarios if any(isinstance(o, Touch) and o.as_id for o in s.operations)]
    assert 5 < len(inside) < 30
    rules: set[str] = set()
    for scenario in inside:
        validate(scenario)
        assert scenario.needs == ("smm",)
        verdict = judge(ideal_history(scenario, EVERYTHING))
        assert verdict.status is Status.PASSED, verdict
        rules.update(verdict.rules)
    assert "smm" in rules


def test_some_are_mutations_and_some_are_long() -> None:
    scenarios = some(200)
    assert any(scenario.why.startswith("A mutation of ") for scenario in scenarios)
    lengths = sorted(len(scenario.operations) for scenario in scenarios)
    assert lengths[len(lengths) // 4] < 60
    assert lengths[-len(lengths) // 4] > 300


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_chances_of_never_and_always(share: float) -> None:
    dice = Dice(1)
    assert all(dice.chance(share) is bool(share) for _ in range(100))
