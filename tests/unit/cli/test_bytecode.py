"""Python does not notice that a full disk has cut off a module that it compiled; the next run does.

Its status would be 1, which is that of a kernel that differs.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("module", ["vmm/cli/main.py", "vmm/cli/coverage.py"])
def test_a_compiled_module_that_was_cut_off_is_the_hosts(tmp_path: Path, module: str) -> None:
    environment = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def ended() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-P", "-m", "vmm.cli", "coverage", "--help"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert ended().returncode == 0
    name = Path(importlib.util.cache_from_source(module)).name
    (compiled,) = (tmp_path / str(ROOT)[1:] / module).parent.glob(name)
    os.truncate(compiled, 1000)
    result = ended()
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("vmm: the host: a compiled module")
    assert result.stderr.count("\n") == 1
