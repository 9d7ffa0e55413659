"""The exit statuses stand in one module: the README, the help and the scripts say the same."""

import re
from pathlib import Path

from tests.played import vmm
from vmm.verdict import statuses
from vmm.verdict.judge import Status

ROOT = Path(__file__).parents[3]
NUMBERS = {name: value for name, value in vars(statuses).items() if isinstance(value, int)}


def test_each_status_has_one_meaning() -> None:
    assert len(set(NUMBERS.values())) == len(NUMBERS)
    assert {status.exit_status for status in Status} <= set(NUMBERS.values())


def test_the_readme_has_a_row_for_each() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ", readme, re.MULTILINE)
    assert [int(number) for number in rows] == sorted(NUMBERS.values())


def test_the_help_names_each() -> None:
    text = " ".join(vmm("--help").output.partition("Exit status:")[2].split())
    assert [int(number) for number in re.findall(r"\b(\d+) ", text)] == sorted(NUMBERS.values())


def test_the_scripts_end_with_the_same_numbers() -> None:
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    found = [
        (NUMBERS.get(name), int(number))
        for path in scripts
        for number, name in re.findall(r"^ *exit (\d+)(?:  # (\w+))?$", path.read_text(), re.M)
    ]
    assert found
    assert all(expected == number for expected, number in found)
