"""Files that once went wrong, through `vmm run` on this kernel: each has one right answer."""

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests import zygote
from vmm.scenario.codec import scenario_text
from vmm.scenario.operations import ChangeHostMemory, Mapping, Place, Scenario

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "cases"
TIME_LIMIT_S = 120

PASSES = "PASSED       {name}: "
NEEDS = "SKIPPED      {name}: needs "
ENDLESS = "INCONCLUSIVE {name}: endless: the guest has no exit within 1 s"

RIGHT = {
    "private-vm-has-one-address-space": (PASSES, f"{NEEDS}KVM_X86_SW_PROTECTED_VM"),
    "private-vm-with-smm": (f"{NEEDS}KVM_X86_SW_PROTECTED_VM", f"{NEEDS}KVM_CAP_X86_SMM"),
    "ioapic-in-the-kernel": (PASSES, f"{NEEDS}KVM_CAP_IRQCHIP"),
    "guest-that-never-ends": (ENDLESS,),
    "race-with-a-guest-that-never-ends": (ENDLESS,),
    "failing-allocation": (PASSES, f"{NEEDS}failing allocations"),
    "huge-page": (PASSES, f"{NEEDS}a free 2 MiB huge page"),
    "drop-16384-pages": (PASSES,),
}
"""What the first line may begin with; a skip is right where this host lacks what it names."""

STATUS = {"PASSED": 0, "INCONCLUSIVE": 3, "SKIPPED": 4}


def test_every_file_is_looked_at() -> None:
    assert {file.stem for file in CASES.glob("*.json")} == RIGHT.keys()


def run(file: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return zygote.vmm(
        "run", file, *options, timeout=TIME_LIMIT_S, env={**os.environ, "COLUMNS": "200"}
    )


@pytest.fixture(scope="module", autouse=True)
def _started() -> None:
    """Start what runs the commands, and stays."""
    zygote.vmm("--version")


@pytest.mark.parametrize("name", RIGHT)
def test_the_file_has_its_right_answer_in_time(name: str) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    begun = time.monotonic()
    impatience = ("--patience", "0.2") if RIGHT[name] == (ENDLESS,) else ()
    result = run(CASES / f"{name}.json", *impatience)
    took_s = time.monotonic() - begun
    begins = tuple(begin.format(name=name) for begin in RIGHT[name])
    assert result.stdout.startswith(begins), result.stdout + result.stderr
    assert result.returncode == STATUS[result.stdout.split()[0]]
    assert took_s < 30
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_what_is_unmapped_again_and_again_is_done_in_time(tmp_path: Path) -> None:
    unmap = ChangeHostMemory(Place("a"), 1 << 17, "unmap")
    scenario = Scenario("unmapped", (unmap,) * 3000, (Mapping("a", 1 << 17, "memfd"),))
    file = tmp_path / "unmapped.json"
    file.write_text(scenario_text(scenario))
    begun = time.monotonic()
    result = run(file)
    assert (result.returncode, result.stdout[:23]) == (0, "PASSED       unmapped: ")
    assert time.monotonic() - begun < 30
