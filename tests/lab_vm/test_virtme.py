"""virtme-ng: the commands of its guide, one of them on a kernel of scripts/lab-kernel."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import shown_in
from vmm.lab.cache import cache_folder
from vmm.lab.machine import QEMU

ROOT = Path(__file__).parents[2]
SHOWN = [shown.command for shown in shown_in(ROOT / "docs/howto/virtme-ng.md")]
KERNEL = cache_folder() / "kernels/6.12-small"
MODULES = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-amd.ko")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
LIMIT_S = 900
_COLOURS = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        shutil.which("vng", path=PATH) is None, reason="needs vng: pip install virtme-ng"
    ),
]


def run(command: str, limit_s: float) -> str:
    """Run a command of the shell, and return what it printed, without the console's colours."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=os.environ | {"PATH": PATH},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", timeout=limit_s, check=False,
    )  # fmt: skip
    return _COLOURS.sub("", done.stdout)


def test_the_command_of_the_guide_checks_the_kernel_that_it_boots() -> None:
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is missing: apt install qemu-system-x86")
    if not (KERNEL / "arch/x86/boot/bzImage").exists():
        pytest.skip("no kernel was built: scripts/lab-kernel small")
    printed = run(for_modules(), LIMIT_S)
    assert "2 scenarios: 2 passed" in printed, printed
    assert "Linux 6.12." in printed


def for_modules() -> str:
    """Return the guide's command for hosts without nesting: modules are loaded before it."""
    (command,) = (each for each in SHOWN if "--disable-kvm" in each)
    before = "; ".join(f"insmod {KERNEL / each}" for each in MODULES)
    options, _, inside = command.partition(' -- "$(command -v vmm)" ')
    assert inside.startswith("check move-up move-down")
    options = options.replace("~/linux", str(KERNEL))
    return f'{options} -- "{before}; TMPDIR=/run $(command -v vmm) {inside}"'


@pytest.mark.parametrize("command", SHOWN)
def test_vng_takes_what_the_guide_gives_it(command: str, tmp_path: Path) -> None:
    tree = tmp_path / "linux"
    (tree / "arch/x86/boot").mkdir(parents=True)
    for name in ("arch/x86/boot/bzImage", ".config", "Makefile", "Kconfig"):
        (tree / name).touch()
    asked = command.replace("~/linux", str(tree)).replace("vng ", "vng --dry-run ")
    printed = run(asked, 60)
    assert re.search(rf"^make |-kernel {tree}", printed, re.MULTILINE), printed
    assert "error" not in printed, printed
