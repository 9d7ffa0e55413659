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
    test = yaml.safe_load((EXAMPLES / "ci/lava-test.yaml").read_text())
    assert re.match(r"Lava-Test Test Definition 1\.\d", test["metadata"]["format"])
    last = test["run"]["steps"][-1].replace("/tmp/memslots.tap", str(tmp_path / "tap"))
    (tmp_path / "tap").write_text("TAP version 13\n1..4\nok 1 - move-up\nnot ok 2 - move-down\n"
                                  "ok 3 - huge # SKIP needs pages\n"
                                  "not ok 4 known # TODO known issue an-issue\n")  # fmt: skip
    (tmp_path / "lava-test-case").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "lava-test-case").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-c", last], env=variables, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [
        "move-up --result pass",
        "move-down --result fail",
        "huge --result skip",
        "known --result skip",
    ]
