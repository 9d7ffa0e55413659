"""Every format at once, of scenarios that run on the real kernel."""

import json
from pathlib import Path

import jsonschema
from junitparser import JUnitXml
from tap.parser import Parser

from tests.zygote import vmm

ROOT = Path(__file__).parents[2]
NAMES = ["create-one-page", "delete-twice", "move-up"]


def test_every_format_tells_of_the_same_run(tmp_path: Path) -> None:
    formats = ("text", "ktap", "tap13", "junit", "json", "html")
    files = {name: tmp_path / f"result.{name}" for name in formats}
    options = [f"--format={name}:{file}" for name, file in files.items()]
    done = vmm("check", *NAMES, *options, "--kselftest")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "3 scenarios: 3 passed" in files["text"].read_text()
    ktap = files["ktap"].read_text()
    assert [f"  ok 1 {name}\n" in ktap for name in NAMES] == [True] * 3
    tap = [x for x in Parser().parse_text(files["tap13"].read_text()) if x.category == "test"]
    assert [(line.description, line.ok) for line in tap] == [(name, True) for name in NAMES]
    cases = [case for suite in JUnitXml.fromfile(str(files["junit"])) for case in suite]
    assert [(case.name, case.is_passed) for case in cases] == [(name, True) for name in NAMES]
    result = json.loads(files["json"].read_text())
    jsonschema.validate(result, json.loads((ROOT / "docs/result.schema.json").read_text()))
    assert [each["name"] for each in result["scenarios"]] == NAMES
    assert all(name in files["html"].read_text() for name in NAMES)
