"""The pages of the library: made from docstrings, without a warning."""

import subprocess
import sys
from pathlib import Path

import vmm

ROOT = Path(__file__).parents[2]


def test_pages_are_built_without_a_warning_and_hold_every_public_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "library" / "index.html").read_text()
    constants = {"Cap", "MemFlag", "VmType"}  # Numbers of the ABI, named as the kernel does.
    modules = {"exits", "history", "kernelslots", "operations"}
    for name in set(vmm.__all__) - constants - modules:
        assert f'.{name}"' in page, name
    for name in modules | {"SetUserMemoryRegion", "Mmio", "Vcpu.get_regs", "HostMapping.discard"}:
        assert name in page
