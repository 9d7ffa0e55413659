"""Python does not notice that a full disk has cut off a module that it compiled; the next run does.

Its status would be 1, which is that of a kernel that differs.
"""

import importlib.util
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all modules of a command are compiled."""
    made = tmp_path_factory.mktemp("bytecode")
    assert ended(made).returncode == 0
    return made


def ended(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-P", "-m", "vmm.cli", "coverage", "--help"],
        env={"PYTHONPYCACHEPREFIX": str(folder), "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "module",
    [
        "vmm/cli/start.py",
        "vmm/host/signals.py",
        "vmm/scenario/endings.py",
        "vmm/verdict/statuses.py",
        "vmm/cli/main.py",
        "vmm/cli/coverage.py",
    ],
)
def test_a_compiled_module_that_was_cut_off_is_the_hosts(folder: Path, module: str) -> None:
    name = Path(importlib.util.cache_from_source(module)).name
    (compiled,) = (folder / str(ROOT)[1:] / module).parent.glob(name)
    whole = compiled.read_bytes()
    os.truncate(compiled, len(whole) // 2)
    result = ended(folder)
    compiled.write_bytes(whole)
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("vmm: the host: a compiled module")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "module", ["vmm/__init__.py", "vmm/cli/__init__.py", "vmm/cli/__main__.py"]
)
def test_what_python_reads_before_it_can_be_told_is_of_a_block(tmp_path: Path, module: str) -> None:
    compiled = tmp_path / "compiled"
    py_compile.compile(str(ROOT / module), str(compiled))
    assert compiled.stat().st_size < 4096  # A full disk takes it whole, or not at all.
