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


def _plays(pairs: list[tuple[str, str]]) -> str:
    """Return a line of a shell that plays scenarios on faults: to start Python takes long there."""
    words = ("env", f"PYTHONPATH={ROOT}", "PYTHONDONTWRITEBYTECODE=1", "TMPDIR=/dev/shm")
    play = (f"LD_PRELOAD={lab.build()}", sys.executable, "-P", "-m", "tests.lab.play")
    asked = "".join(f"{fault} {name}\n" for fault, name in pairs)
    return f"printf %s {shlex.quote(asked)} | {shlex.join((*words, *play))}"


def test_vcpus_that_start_in_smm_tell_of_a_wrong_kernel(kernel: str, tmp_path: Path) -> None:
    faults = [fault.name for fault in lab.faults() if not fault.witness]
    wrong = [(fault, name) for fault in faults for name in CAUGHT[fault]]
    right = [("-", name) for name in sorted({name for _, name in wrong})]
    ending, printed = test_lab.in_machine(kernel, tmp_path, _plays(right + wrong), limit_s=240)
    assert ending.status == 0, (ending, printed)
    verdicts = printed.splitlines()
    assert verdicts[: len(right)] == ["passed -"] * len(right), printed
    statuses = [verdict.split()[0] for verdict in verdicts[len(right) :]]
    assert statuses == ["differs"] * len(wrong), printed
