"""Other engines run the tool: tmt, against this very machine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BIN = Path(sys.executable).parent


def tmt(folder: Path, scenarios: str) -> "subprocess.CompletedProcess[str]":
    """Run the plan of examples/fleet on this machine, and return what tmt says."""
    project = shutil.copytree(EXAMPLES / "fleet", folder / "project")
    command = (BIN / "tmt", "--feeling-safe", "--root", project, "run", "--id", folder / "run")
    variables = ("-e", f"SCENARIOS={scenarios}", "-e", f"VMM={BIN / 'vmm'}")
    return subprocess.run(
        [*map(str, command), *variables, "--all", "provision", "--how", "local"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.long
@pytest.mark.skipif(not (BIN / "tmt").exists(), reason="needs tmt: pip install tmt")
def test_tmt_runs_the_plan_on_this_machine(tmp_path: Path) -> None:
    done = tmt(tmp_path, "move-up*")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "total: 1 test passed" in re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
    (document,) = tmp_path.rglob("junit.xml")
    assert 'tests="2"' in document.read_text()
    assert list(tmp_path.rglob("result.html"))
