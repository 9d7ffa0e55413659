"""Emitted programs run on this kernel, and find it right, or wrong where ``vmm`` does."""

from pathlib import Path

import pytest

from tests.programs import CANNOT_RUN, COMPILER, RIGHT, compare, end_of
from vmm.catalogue import catalogue
from vmm.execution.probe.features import probe_features
from vmm.fuzz.dice import seed_of
from vmm.fuzz.generate import generate
from vmm.kvm.system import Kvm
from vmm.repro.emit import program_of

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
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def test_programs_end_as_vmm_says(kvm: Kvm, tmp_path: Path) -> None:
    features = probe_features(kvm)
    ran = [compare(s, features, tmp_path) for s in catalogue(features) if s.name in NAMES]
    assert len(ran) > len(NAMES) - 2
    assert [each for each in ran if not each.good or each.form] == []


def test_random_scenarios_come_out_right(kvm: Kvm, tmp_path: Path) -> None:
    features = probe_features(kvm)
    for number in range(4):
        text = program_of(generate(seed_of(11, number), features), features)
        status, said = end_of(text, tmp_path)
        assert status in (RIGHT, CANNOT_RUN), said
