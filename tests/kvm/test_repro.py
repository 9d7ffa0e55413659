"""Emitted programs run on this kernel, and find it right."""

import shutil
import subprocess
from pathlib import Path

import pytest

from scenarios import catalogue
from vmm.fuzz.dice import seed_of
from vmm.fuzz.generate import generate
from vmm.memslots.operations import Scenario
from vmm.memslots.probe import probe_features
from vmm.repro.emit import program_of
from vmm.system import Kvm

COMPILER = shutil.which("cc") or shutil.which("gcc")
NAMES = (
    "move-up",
    "move-onto-itself",
    "unmapped-zero-va",
    "straddle-two-slots",
    "zero-va-execute",
    "move-carries-content",
    "delete-twice",
    "move-out-of-huge-page-alignment",
)
RIGHT, CANNOT_RUN = 0, 4

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def run(scenario: Scenario, folder: Path) -> subprocess.CompletedProcess[str]:
    with Kvm.open() as kvm:
        text = program_of(scenario, probe_features(kvm))
    (folder / "repro.c").write_text(text)
    binary = folder / "repro"
    subprocess.run([str(COMPILER), "-o", binary, folder / "repro.c"], check=True)
    return subprocess.run([binary], capture_output=True, text=True, timeout=20, check=False)


def chosen() -> list[Scenario]:
    with Kvm.open() as kvm:
        features = probe_features(kvm)
    return [s for s in catalogue(features) if s.name in NAMES and not features.missing(s.needs)]


def test_curated_scenarios_come_out_right(tmp_path: Path) -> None:
    scenarios = chosen()
    assert len(scenarios) >= 4
    for scenario in scenarios:
        ran = run(scenario, tmp_path)
        assert (ran.returncode, ran.stdout) == (RIGHT, "right\n"), scenario.name


def test_random_scenarios_come_out_right(tmp_path: Path) -> None:
    with Kvm.open() as kvm:
        features = probe_features(kvm)
    for number in range(4):
        ran = run(generate(seed_of(11, number), features), tmp_path)
        assert ran.returncode in (RIGHT, CANNOT_RUN), ran.stdout
