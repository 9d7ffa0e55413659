"""Emitted programs run on this kernel, and find it right, or wrong where ``vmm`` does."""

from pathlib import Path

import pytest

from tests.programs import CANNOT_RUN, COMPILER, RIGHT, compare, end_of
from vmm.catalogue import catalogue
from vmm.execution.probe.features import probe_features
from vmm.fuzz.generate.dice import seed_of
from vmm.fuzz.generate.scenarios import generate
from vmm.kvm.system import Kvm
from vmm.repro.emit import program_of
from vmm.scenario.operations import (
    Inspect,
    Instruction,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
)
from vmm.scenario.plan import out_of_reach

NAMES = (
    "straddle-two-slots",
    "zero-va-execute",
    "move-out-of-huge-page-alignment",
    "high-sweep-over-borders",
    "high-execute-then-move-then-execute",
    "high-refused-move-beyond-the-last-gfn",
    "ring-of-each-vcpu",
    "ring-overrun-in-one-run",
    "memfd-refuse-an-end-beyond-2-to-the-63",
    "memfd-shared-with-the-host",
    "follow-unmapped-file-pages",
    "follow-protected-pages",
    "other-vms-closed-while-running",
    "other-vms-held-by-a-child",
    "apic-page-of-no-apic",
    "instructions-where-a-slot-was",
    "accesses-of-up-to-16-bytes",
    "instructions-of-64-bits-over-borders",
    "instructions-on-memory-that-is-not-there",
)
RARELY_RIGHT = ("ring-overrun-in-one-run",)
"""A kernel that has the known issue does right where something interrupts the guest in time."""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def test_programs_end_as_vmm_says(kvm: Kvm, tmp_path: Path) -> None:
    features = probe_features(kvm)
    scenarios = [scenario for scenario in catalogue(features) if scenario.name in NAMES]
    ran = [compare(each, features, tmp_path) for each in scenarios]
    for number, scenario in enumerate(scenarios):
        if scenario.name in RARELY_RIGHT and not ran[number].good:
            ran[number] = compare(scenario, features, tmp_path)
    assert len(ran) > len(NAMES) - 2
    assert [each for each in ran if not each.good or each.form] == []


@pytest.mark.parametrize("number", range(6))
def test_programs_of_random_scenarios_end_as_vmm_says(
    kvm: Kvm, tmp_path: Path, number: int
) -> None:
    features = probe_features(kvm)
    scenario = generate(seed_of(11, number), features)
    ran = compare(scenario, features, tmp_path)
    assert ran.good, ran
    if not ran.form:
        # Without a history it may build on what another kernel does.
        status, said = end_of(program_of(scenario, features), tmp_path)
        assert status in (RIGHT, CANNOT_RUN), said


def test_instructions_that_exit_often_and_cross_windows_come_out_right(
    kvm: Kvm, tmp_path: Path
) -> None:
    features = probe_features(kvm)
    border = 2 << 20
    often = Instruction("rep-movs", 0x300000, 1, count=0x400, source=0x340000)
    long: tuple[Instruction, ...] = (
        Instruction("load", 0, 1, mode="long"),
        Instruction("movs", 0, 8, source=0x40, mode="long"),
        Instruction("push", border - 8, 8, value=7, mode="long"),
        Instruction("rep-stos", border - 8, 4, compare=9, count=3, down=True, mode="long"),
    )
    has_long = not out_of_reach(Scenario("long", long), features.touch_limit)
    scenario = Scenario(
        "often",
        (
            SetUserMemoryRegion(1, border - 0x1000, 0x2000, Place("a")),
            *(long if has_long else ()),
            Inspect(),
            often,
        ),
        (Mapping("a", 2),),
    )
    ran = compare(scenario, features, tmp_path)
    assert ran.good, ran
    assert not ran.form
