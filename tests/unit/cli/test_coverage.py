"""`vmm coverage` on a kernel that is played, and its table of historic bugs."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from tests.played import INFO, SCENARIOS, Kernel, played, vmm
from vmm.catalogue import catalogue
from vmm.catalogue.history import BUGS
from vmm.cli import coverage
from vmm.model.rules import rules_of_outcomes
from vmm.scenario.features import NEEDS, Features
from vmm.verdict.coverage import RanCheck, State, cover
from vmm.verdict.ideal import EVERYTHING, PLAIN, rules_met
from vmm.verdict.judge import Status

PAGE = Path(__file__).parents[3] / "docs" / "coverage.md"


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = played(monkeypatch)
    monkeypatch.setattr(coverage, "look_at_host", kernel.look_at_host)
    return kernel


def test_without_a_file_every_scenario_runs(kernel: Kernel) -> None:
    result = vmm("coverage")
    assert kernel.ran == [scenario.name for scenario in SCENARIOS]
    assert re.search(r"^checked +create +create-one, create-two and 2 more$", result.stdout, re.M)
    assert re.search(r"^gap +move +no scenario meets it on any kernel$", result.stdout, re.M)
    assert result.exit_code == 3


def test_file_of_a_check_says_the_same(kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    vmm("check", "--json", file)
    kernel.ran.clear()
    from_file = vmm("coverage", file, "--json")
    assert kernel.ran == []
    assert from_file.exit_code == 3
    assert json.loads(from_file.stdout) == json.loads(vmm("coverage", "--json").stdout)


def test_difference_is_exit_status_1_and_markdown_tells_the_rule(kernel: Kernel) -> None:
    kernel.differ("create-two")
    result = vmm("coverage", "--markdown")
    assert result.exit_code == 1
    assert "| differs | `create` | " in result.stdout


@pytest.mark.parametrize("text", [None, "hello"])
def test_bad_file_is_one_line(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "result.json"
    if text is not None:
        file.write_text(text)
    result = vmm("coverage", file)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"vmm: {file}: ")
    assert result.stderr.count("\n") == 1


def test_host_without_kvm_has_nothing_to_say(kernel: Kernel) -> None:
    kernel.info = dataclasses.replace(INFO, obstacle="no device", remedy="load it")
    assert vmm("coverage").exit_code == 4


def test_imagined_kernel_lacks_nothing() -> None:
    assert EVERYTHING.missing(tuple(NEEDS)) == ""
    assert [s.name for s in catalogue(EVERYTHING) if EVERYTHING.missing(s.needs)] == []


def test_no_rule_is_without_a_scenario() -> None:
    nothing = RanCheck(Status.SKIPPED, (), Features(), INFO)
    found = cover(nothing, rules_of_outcomes(), (), coverage._elsewhere)
    assert [each.rule.name for each in found.rules if each.state is State.GAP] == []


def test_scenario_that_needs_more_meets_no_rule() -> None:
    (needy,) = (s for s in SCENARIOS if s.needs)
    assert rules_met(needy, PLAIN) == frozenset()
    assert "create" in rules_met(needy, EVERYTHING)


def test_every_bug_has_a_scenario_that_exists_or_says_why_not() -> None:
    names = {scenario.name for scenario in catalogue(EVERYTHING)}
    for bug in BUGS:
        assert bool(bug.shown_by) != bool(bug.gap)
        assert {shown.scenario for shown in bug.shown_by} <= names
        assert all(re.fullmatch("[0-9a-f]{12}", commit) for commit in bug.commits)
    commits = [commit for bug in BUGS for commit in bug.commits]
    assert len(commits) == len(set(commits))


def test_page_has_every_rule_and_every_bug() -> None:
    """Where it has not: `vmm coverage --markdown > docs/coverage.md`."""
    page = PAGE.read_text(encoding="utf-8")
    assert [rule.name for rule in rules_of_outcomes() if f"| `{rule.name}` | " not in page] == []
    for bug in BUGS:
        assert f"| {', '.join(f'`{commit}`' for commit in bug.commits)} | {bug.wrong} |" in page
        assert all(f"`{shown.scenario}`: {shown.because}" in page for shown in bug.shown_by)


def test_page_has_no_rule_and_no_scenario_that_there_is_not() -> None:
    """Where it has: the same command, with the result of `vmm check --all --json FILE`."""
    page = PAGE.read_text(encoding="utf-8")
    rules, _, bugs = page.partition("## Bugs")
    rows = re.findall(r"^\| [a-z ]+ \| `([^`]+)` \| .* \| ([^|]*) \|$", rules, flags=re.MULTILINE)
    assert {rule for rule, _ in rows} == {rule.name for rule in rules_of_outcomes()}
    shown = {name for _, names in rows for name in re.findall("`([a-z0-9-]+)`", names)}
    scenarios = {scenario.name for scenario in catalogue(EVERYTHING)}
    assert len(shown) > len(rows) // 2
    assert shown <= scenarios
    shows = set(re.findall(r"`([a-z0-9-]+)`: ", bugs))
    assert len(shows) > 20
    assert shows <= scenarios
