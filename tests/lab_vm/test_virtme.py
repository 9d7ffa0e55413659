"""virtme-ng: its guide's command for hosts without nesting, on a kernel of scripts/lab-kernel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.lab.machine import QEMU

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/howto/virtme-ng.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memslot-vmm"
KERNEL = CACHE / "kernels/6.12-small"
MODULES = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-amd.ko")
LIMIT_S = 900


@pytest.mark.long
def test_the_command_of_the_guide_checks_the_kernel_that_it_boots() -> None:
    for program in ("vng", QEMU):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing")
    if not (KERNEL / "arch/x86/boot/bzImage").exists():
        pytest.skip("no kernel was built: scripts/lab-kernel small")
    done = subprocess.run(
        ["bash", "-c", shown()],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert "2 scenarios: 2 passed" in done.stdout
    assert "Linux 6.12." in done.stdout


def shown() -> str:
    """Return the guide's command, for this kernel: its modules are loaded first."""
    lines = (line.strip() for line in GUIDE.read_text(encoding="utf-8").splitlines())
    command = next(line.removeprefix("$ ") for line in lines if "--disable-kvm" in line)
    before = "; ".join(f"insmod {KERNEL / each}" for each in MODULES)
    options, _, inside = command.partition(' -- "$(command -v vmm)" ')
    assert inside.startswith("check move-up move-down")
    options = options.replace("~/linux", str(KERNEL))
    return f'{options} -- "{before}; TMPDIR=/run $(command -v vmm) {inside}"'
