"""Other engines run the tool: tmt, against this very machine, and the scripts of their jobs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
@pytest.mark.skipif(shutil.which("rsync") is None, reason="tmt needs rsync: apt install rsync")
def test_tmt_runs_the_plan_on_this_machine(tmp_path: Path) -> None:
    done = tmt(tmp_path, "move-up*")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "total: 1 test passed" in re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
    (document,) = tmp_path.rglob("junit.xml")
    assert 'tests="2"' in document.read_text()
    assert list(tmp_path.rglob("result.html"))


def commands_of(name: str) -> list[str]:
    """Return the commands of a job that are ours, as its engine gives them to a shell."""
    if name == "gitlab-ci.yml":
        lines = yaml.safe_load((EXAMPLES / "ci" / name).read_text())["memslots"]["script"]
    else:
        job = yaml.safe_load((EXAMPLES / "ci" / name).read_text())["jobs"]["memslots"]
        lines = [step["run"] for step in job["steps"] if "run" in step]
    return [line for line in lines if line.startswith("vmm ")]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("github-actions.yml", {"junit.xml", "result.json", "result.html"}),
        ("gitlab-ci.yml", {"junit.xml", "result.html"}),
    ],
)
def test_the_commands_of_a_job_leave_the_files_that_it_keeps(
    name: str, kept: set[str], tmp_path: Path
) -> None:
    found = commands_of(name)
    assert len(found) == 2
    for command in found:
        done = subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == kept
    text = (EXAMPLES / "ci" / name).read_text()
    assert all(text.count(file) == 2 for file in kept)  # Written by the command, kept by the job.


@pytest.mark.long
@pytest.mark.parametrize("index", [0, 3])
def test_a_pod_of_the_job_searches_its_part(index: int, tmp_path: Path) -> None:
    job = yaml.safe_load((EXAMPLES / "fleet/job.yaml").read_text())["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (script,) = container["args"]
    (volume,) = (each for each in container["volumeMounts"] if each["name"] == "findings")
    shorter = script.replace("--seconds 3600", "--seconds 3")
    assert shorter != script
    done = subprocess.run(
        [*container["command"], shorter.replace(volume["mountPath"], str(tmp_path))],
        env={**os.environ, "PATH": f"{BIN}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": str(index)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"shard {index + 1}/{job['completions']}" in done.stdout
