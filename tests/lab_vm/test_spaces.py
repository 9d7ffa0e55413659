"""Wrong kernels of which only a machine with two address spaces can tell: `faults_spaces.c`."""

import json
import shlex
import sys
from pathlib import Path

from tests.lab import lab
from tests.lab_vm import test_lab

kernel = test_lab.kernel  # A fixture.
ROOT = Path(__file__).resolve().parent.parent.parent
CAUGHT: dict[str, list[str]] = json.loads((ROOT / "tests/lab/caught.json").read_text())


def _check(fault: str, *names: str) -> str:
    """Return a line of a shell that checks scenarios, and prints the fault and the status."""
    words = ("env", f"PYTHONPATH={ROOT}", "PYTHONDONTWRITEBYTECODE=1", "TMPDIR=/dev/shm")
    wrong = (f"LD_PRELOAD={lab.build()}", f"WRONG_KERNEL={fault}") if fault else ()
    vmm = (sys.executable, "-P", "-m", "vmm.cli", "check", "-q", *names)
    return f"{shlex.join((*words, *wrong, *vmm))}; echo {fault or 'none'} ends with $?\n"


def test_vcpus_that_start_in_smm_tell_of_a_wrong_kernel(kernel: str, tmp_path: Path) -> None:
    faults = {fault.name: CAUGHT[fault.name] for fault in lab.faults() if not fault.witness}
    every = sorted({name for names in faults.values() for name in names})
    checks = [_check("", *every), *(_check(fault, *names) for fault, names in faults.items())]
    ending, printed = test_lab.in_machine(kernel, tmp_path, "".join(checks), limit_s=240)
    assert ending.status == 0, (ending, printed)
    assert "none ends with 0" in printed, printed
    for fault, names in faults.items():
        assert f"{fault} ends with 1" in printed, printed
        assert all(f"DIFFERS      {name}: " in printed for name in names), printed
