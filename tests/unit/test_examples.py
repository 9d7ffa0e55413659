"""The examples for other engines, held against those engines' own schemas."""

import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.unit.test_documents import parsed

EXAMPLES = Path(__file__).parents[2] / "examples"
JOB = EXAMPLES / "fleet/job.yaml"


def checked(schema: str, file: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    return subprocess.run([*command, file], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("schema", "name"),
    [("github-workflows", "github-actions.yml"), ("gitlab-ci", "gitlab-ci.yml")],
)
def test_a_workflow_is_one_in_the_eyes_of_the_published_schema(
    schema: str, name: str, tmp_path: Path
) -> None:
    done = checked(schema, EXAMPLES / "ci" / name)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / name
    broken.write_text((EXAMPLES / "ci" / name).read_text().replace("- vmm info", "- 1: {2: 3}")
                      .replace("run: vmm info", "ran: vmm info"))  # fmt: skip
    assert checked(schema, broken).returncode == 1


def test_the_job_is_one_in_the_eyes_of_kubernetes() -> None:
    job = yaml.safe_load(JOB.read_text())
    kubernetes_validate.validate(job, "1.30", strict=True)
    job["spec"]["completionsMode"] = job["spec"].pop("completionMode")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.30", strict=True)


def test_the_pods_of_the_job_search_each_part_once(tmp_path: Path) -> None:
    job = yaml.safe_load(JOB.read_text())["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (script,) = container["args"]
    (tmp_path / "vmm").write_text('#!/bin/sh\nprintf "%s " "$@"\n')
    (tmp_path / "vmm").chmod(0o755)
    shards: list[tuple[int, int]] = []
    for index in range(job["completions"]):
        variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": str(index)}
        done = subprocess.run(
            [*container["command"], script],
            env=variables, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        shards.append(parsed(f"vmm {done.stdout}").params["shard"])
    count = job["completions"]
    assert shards == [(part, count) for part in range(1, count + 1)]


def test_the_test_of_lava_reports_each_scenario(tmp_path: Path) -> None:
    tap = (
        "TAP version 13\n1..4\nok 1 - move-up\nnot ok 2 - move-down\n"
        "ok 3 - huge # SKIP needs pages\nnot ok 4 known # TODO known issue an-issue\n"
    )
    assert reported_to_lava(tmp_path, f"printf '{tap}' >$4; exit 1") == [
        "memslots --result fail",
        "move-up --result pass",
        "move-down --result fail",
        "huge --result skip",
        "known --result skip",
    ]


@pytest.mark.parametrize(
    ("status", "result"), [(0, "pass"), (1, "fail"), (2, "pass"), (4, "skip"), (70, "fail")]
)
def test_a_run_that_reports_no_scenario_to_lava_has_its_own_result(
    tmp_path: Path, status: int, result: str
) -> None:
    assert reported_to_lava(tmp_path, f"exit {status}") == [f"memslots --result {result}"]


def reported_to_lava(tmp_path: Path, command: str) -> list[str]:
    """Run the steps after the installation, as LAVA does, and return what they report.

    The file of TAP is the argument $4 of the ``command`` that stands in for `vmm`.
    """
    test = yaml.safe_load((EXAMPLES / "ci/lava-test.yaml").read_text())
    assert re.match(r"Lava-Test Test Definition 1\.\d", test["metadata"]["format"])
    steps = "\n".join(("set -e", *test["run"]["steps"][2:]))
    for before, after in (
        ("/tmp/venv/bin/", f"{tmp_path}/"),
        ("tap13:/tmp/memslots.tap", f"tap13 {tmp_path}/tap"),
        ("/tmp/memslots.tap", f"{tmp_path}/tap"),
    ):
        steps = steps.replace(before, after)
    for name, text in (("vmm", f"{command}\n"), ("lava-test-case", 'echo "$@"\n')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-c", steps],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()
