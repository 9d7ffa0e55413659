"""The lab's commands that documents show, each run with one scenario, or for a few seconds."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import IN_BLOCKS, IN_SENTENCES, Shown
from vmm.lab.cache import cache_folder
from vmm.lab.machine import QEMU

KERNEL = cache_folder() / "kernels/6.12-small"
BEFORE = cache_folder() / "kernels/5.10-small"
LIMIT_S = 600

_SHOWN = [
    each for each in (*IN_BLOCKS, *IN_SENTENCES) if re.match(r"\S*vmm lab [a-z]", each.command)
]
_UNIQUE = {each.command.removeprefix("./scripts/"): each for each in reversed(_SHOWN)}

_STANDS_FOR = (
    (r'"\$\(scripts/lab-kernel small ~/linux\)"|~/linux\b(?!-)', str(KERNEL)),
    (r"~/linux-before", str(BEFORE)),
    (r"\barch/x86/boot/bzImage", f"{KERNEL}/arch/x86/boot/bzImage"),
    (r"/tmp/m/lib/modules/6.12.1", "MODULES"),
    (r"--kernel A --kernel B", f"--kernel {BEFORE} --kernel {KERNEL} --operations 50 move-up"),
    (r"\[--kernel K \.\.\.\] \[NAME-PATTERN \.\.\.\]", f"--kernel {KERNEL} move-up"),
    (r"matrix --backend svm$", f"matrix --backend svm --kernel {KERNEL} move-up"),
    (r"--seconds \d+", "--seconds 30"),
    (r"(-- check( --histories \S+)?)$", r"\1 move-up"),
)
"""What is run in place of a part: a kernel that is built here, and less than takes an hour."""


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what stands for a command of the lab."""
    for shown, instead in _STANDS_FOR:
        command = re.sub(shown, instead, command)
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("shown", [pytest.param(each, id=str(each)) for each in _UNIQUE.values()])
def test_a_command_of_the_lab_that_is_shown_works(shown: Shown, tmp_path: Path) -> None:
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is missing: apt install qemu-system-x86")
    for kernel in (KERNEL, BEFORE):
        if not (kernel / "arch/x86/boot/bzImage").exists():
            pytest.skip(f"{kernel.name} is not built: scripts/lab-kernel small")
    (tmp_path / "MODULES").mkdir()
    for module in KERNEL.rglob("*.ko"):
        shutil.copy(module, tmp_path / "MODULES")
    done = run(shown.command.removeprefix("./scripts/"), tmp_path)
    if done.returncode == 4:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    if " check" in shown.command:
        assert re.search(r"\d+ scenarios?: \d+ passed", done.stdout), done.stdout
