"""Every fault of the wrong kernel is caught, and every scenario catches one.

`caught.json` says by which scenarios; scripts/caught-table makes it, and this proves it, with
--long for every pair. That tests the whole chain: the fault is below everything, at the ioctl.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import lab
from tests.lab.player import Player
from tests.turns import marks_of
from tests.zygote import vmm
from vmm.catalogue import catalogue
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.scenario.requirements import missing
from vmm.verdict.ideal import EVERYTHING

CAUGHT: dict[str, list[str]] = json.loads((Path(__file__).parent / "caught.json").read_text())

_FORCED = "what KVM does for a prefix goes wrong in tests/mutants only"
_TOO_LONG = "filling the table below the library takes longer than a test may"

HARMLESS = {
    "tss-with-a-full-table": _TOO_LONG,
    "table-filled-and-emptied": f"{_TOO_LONG}, and table-filled does it once",
    "other-vms-killed-while-closing": "what it may show is a warning, which no answer holds",
    "vcpus-refused-by-the-thousand": "what it may show is of one kernel in tests/mutants only",
    "generation-comes-round": "131,072 moves below the library take longer than a test may",
    "pusha-in-a-hole": "fails without a fault: em_pusha",
    "pusha-on-a-readonly-slot": "fails without a fault: em_pusha",
    "pusha-from-a-slot-into-a-hole": "fails without a fault: em_pusha",
    "popa-in-a-hole": "fails without a fault: em_popa",
    "popa-from-a-slot-into-a-hole": "fails without a fault: em_popa",
    "ports-downward-in-a-hole": "fails without a fault: pio_in_emulated",
    "enter-of-16-bits-in-a-hole": "fails without a fault: em_enter",
    "enter-of-16-bits-in-memory": "fails without a fault where KVM emulates it: em_enter",
    "devices-eventfd-of-any-length-after-a-range": "fails without a fault: kvm_io_bus_cmp",
    "instructions-that-kvm-emulates": _FORCED,
    "instructions-that-kvm-emulates-are-logged": _FORCED,
    "apic-page-where-kvm-emulates": _FORCED,
    "sgdt-in-a-hole": "hangs without a fault: segmented_write_std",
    "sidt-on-a-readonly-slot": "hangs without a fault: segmented_write_std",
    "interrupt-through-a-table-in-a-hole": "hangs without a fault: emulate_int_real",
    "interrupt-onto-a-stack-in-a-hole": "fails without a fault: emulate_int_real",
    "interrupt-onto-a-readonly-stack": "fails without a fault: emulate_int_real",
    "fxsave-in-a-hole": "hangs without a fault: segmented_write_std",
    "state-on-a-readonly-slot": "takes a processor that saves vectors: KVM's emulator does not",
    "return-address-of-a-far-call-in-a-hole": "fails without a fault: em_call_far",
    "return-address-of-a-far-call-on-a-readonly-slot": "fails without a fault: em_call_far",
    "memfd-refuse-an-end-beyond-2-to-the-63": "fails without a fault where eba85fee7fc6 is not in",
}
"""Scenarios that no fault of the wrong kernel makes fail, and why."""


@pytest.fixture(scope="module")
def features() -> Features:
    return lab.features_below()


@pytest.fixture(scope="module")
def scenarios(features: Features) -> dict[str, Scenario]:
    """Every scenario by name, whether or not this host can run it."""
    return {scenario.name: scenario for scenario in catalogue(features)}


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    with Player() as process:
        yield process


_LONG = {
    ("refused-values-leak", "nothing-used-up-by-refused-creations"),
    ("move-beyond-last-gfn-leaks", "nothing-used-up-by-refused-moves"),
    ("killed-vms-kept", "nothing-used-up-by-vms-killed"),
}
"""Takes ten seconds; others of the same kind are quicker."""


def _enough() -> set[tuple[str, str]]:
    """Return pairs in which every fault and every scenario is, few of them often."""
    faults_of: dict[str, list[str]] = {}
    for fault, names in CAUGHT.items():
        for name in names:
            faults_of.setdefault(name, []).append(fault)
    needy = {each.name for each in catalogue(EVERYTHING) if each.needs or each.vm_type}
    pairs: set[tuple[str, str]] = set()
    left = set(CAUGHT)
    # Scenarios that see few faults first, since the others have more to choose from.
    for name, faults in sorted(faults_of.items(), key=lambda each: (len(each[1]), each[0])):
        fault = min(faults, key=lambda each: (each not in left, len(CAUGHT[each]), each))
        pairs.add((fault, name))
        if name not in needy:  # Else it may be skipped.
            left.discard(fault)
    return pairs | {(fault, min(CAUGHT[fault], key=needy.__contains__)) for fault in left}


def _pairs() -> Iterator[object]:
    enough = _enough() - _LONG
    for fault, names in CAUGHT.items():
        for name in names:
            marks = [] if (fault, name) in enough else [pytest.mark.long]
            yield pytest.param(fault, name, marks=(*marks, *marks_of(name)))


@pytest.mark.parametrize(("fault", "scenario"), tuple(_pairs()))
def test_fault_is_caught(
    fault: str,
    scenario: str,
    player: Player,
    scenarios: dict[str, Scenario],
    features: Features,
) -> None:
    lacking = missing(scenarios[scenario], features)
    if lacking:
        pytest.skip(f"{scenario} needs {lacking}")
    verdicts = player.shows(fault, scenario)
    assert verdicts[-1].startswith("differs "), verdicts


def test_every_fault_and_every_scenario_is_in_some_pair() -> None:
    every = {(fault, name) for fault, names in CAUGHT.items() for name in names}
    assert _enough() <= every
    for which in (0, 1):
        assert {pair[which] for pair in _enough()} == {pair[which] for pair in every}


def test_every_fault_is_in_the_table() -> None:
    assert {fault.name for fault in lab.faults()} == set(CAUGHT)
    assert [fault for fault, names in CAUGHT.items() if not names] == []


def test_every_scenario_is_in_the_table(scenarios: dict[str, Scenario], features: Features) -> None:
    catching = {scenario for names in CAUGHT.values() for scenario in names}
    assert catching <= set(scenarios)
    usable = {name for name, scenario in scenarios.items() if not missing(scenario, features)}
    races = {name for name in usable if name.startswith("racing-")}  # See test_racing.py.
    assert usable - races - catching == usable & set(HARMLESS)


def test_without_a_fault_the_library_changes_nothing(player: Player) -> None:
    for scenario in ("move-up", "dirty-logs-are-separate", "second-form-refusals"):
        assert player.play("-", scenario) == "passed -"


def test_check_fails_on_a_wrong_kernel_and_says_why() -> None:
    scenario = "move-then-delete-then-create"
    result = vmm("check", scenario, "--require-run", env=lab.environment("delete-lost"))
    assert result.returncode == 1, result.stderr
    assert "DIFFERS" in result.stdout
    assert "hole" in result.stdout
    assert "vmm check move-then-delete-then-create" in result.stdout
