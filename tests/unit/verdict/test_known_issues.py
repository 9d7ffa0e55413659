"""A known issue stands for one difference, in some scenarios, of one backend: for nothing else."""

from dataclasses import replace

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.catalogue import catalogue
from vmm.fuzz.mutate import can_be_mutated
from vmm.host.health import Problem
from vmm.model.rules import all_rules
from vmm.report.terminal import scenario_report
from vmm.scenario.history import Event, History, RingPages, RingsReset
from vmm.scenario.operations import HarvestDirtyRing, Scenario
from vmm.verdict.judge import Status
from vmm.verdict.known_issues import KNOWN_ISSUES, KnownIssue, known_issue, weighed
from vmm.verdict.result import Checked, judged

ISSUE = KNOWN_ISSUES[0]
HOST = {"vendor": ISSUE.vendor}
WARNING = Problem(
    "WARNING: CPU: 0 PID: 7 at virt/kvm/dirty_ring.c:268 kvm_dirty_ring_push+0x1/0x2 [kvm]",
    (
        "------------[ cut here ]------------",
        "WARNING: CPU: 0 PID: 7 at virt/kvm/dirty_ring.c:268 kvm_dirty_ring_push+0x1/0x2 [kvm]",
        "---[ end trace 0000000000000000 ]---",
    ),
)
OTHER = Problem("BUG: unable to handle page fault", ("BUG: unable to handle page fault",))
COUNTED = (
    Problem("the kernel is newly tainted (W: the kernel issued a warning)"),
    Problem("warn_count went from 0 to 1"),
)


def _harvests(scenario: Scenario) -> bool:
    return any(isinstance(op, HarvestDirtyRing) for op in scenario.operations)


def ideal(host: dict[str, str] = HOST) -> History:
    name = min(ISSUE.scenarios)
    scenario = next(each for each in catalogue(FEATURES) if each.name == name)
    history = ideal_history(scenario)
    return msgspec.structs.replace(
        history, header=msgspec.structs.replace(history.header, host=host)
    )


def broken(history: History, kind: type[RingPages] | type[RingsReset]) -> History:
    """Return a history in which the first outcome of a kind is wrong."""
    events = list(history.events)
    index = next(i for i, event in enumerate(events) if isinstance(event.outcome, kind))
    wrong = RingPages() if kind is RingPages else RingsReset(1, 2)
    events[index] = Event(events[index].origin, events[index].operation, wrong)
    return msgspec.structs.replace(history, events=tuple(events))


def with_problems(checked: Checked, *problems: Problem) -> Checked:
    return replace(checked, problems=problems)


def test_issues_name_scenarios_and_rules_that_exist() -> None:
    names = {scenario.name for scenario in catalogue(FEATURES)}
    for issue in KNOWN_ISSUES:
        assert issue.scenarios
        assert issue.scenarios <= names
        assert issue.rules <= {rule.name for rule in all_rules()}


def test_expected_failure_is_shown_as_known_and_exits_with_0() -> None:
    checked = judged(broken(ideal(), RingPages))
    assert checked.verdict.status is Status.KNOWN
    assert checked.verdict.status.exit_status == 0
    assert not checked.failed
    text = "\n".join(line.plain for line in scenario_report(checked, "vmm check x", None))
    assert ISSUE.what in text
    assert ISSUE.evidence in text
    assert "observed" in text


def test_expected_failure_that_passes_is_said() -> None:
    checked = judged(ideal())
    assert checked.verdict.status is Status.PASSES_NOW
    assert checked.verdict.status.exit_status == 0
    (line,) = (x.plain for x in scenario_report(checked, "again", None) if ISSUE.name in x.plain)
    assert line.startswith("PASSES NOW ")


def test_another_rule_is_no_known_issue() -> None:
    assert judged(broken(ideal(), RingsReset)).verdict.status is Status.DIFFERS


@pytest.mark.parametrize("host", [{}, {"vendor": "kvm_intel"}])
def test_another_backend_has_no_excuse(host: dict[str, str]) -> None:
    assert judged(broken(ideal(host), RingPages)).verdict.status is Status.DIFFERS
    assert judged(ideal(host)).verdict.status is Status.PASSED


def test_another_scenario_has_no_excuse() -> None:
    assert known_issue("create-one-page", HOST) is None
    verdict = judged(broken(ideal({}), RingPages)).verdict
    assert weighed(verdict, None) is verdict


@pytest.mark.parametrize("problems", [(WARNING, *COUNTED), (WARNING,), COUNTED, ()])
def test_its_own_warning_is_explained(problems: tuple[Problem, ...]) -> None:
    checked = with_problems(judged(broken(ideal(), RingPages)), *problems)
    assert checked.unexplained == ()
    assert not checked.failed


@pytest.mark.parametrize(
    "problems",
    [
        (OTHER,),
        (WARNING, OTHER, *COUNTED),
        (Problem("oops_count went from 0 to 1"),),
        (Problem("the kernel is newly tainted (W: the kernel issued a warning; D: it died)"),),
    ],
)
def test_any_other_complaint_is_a_failure(problems: tuple[Problem, ...]) -> None:
    assert with_problems(judged(broken(ideal(), RingPages)), *problems).failed


def test_fuzzer_mutates_no_scenario_that_could_fail_by_it() -> None:
    rings = [each for each in catalogue(FEATURES) if "ring" in each.tags]
    assert rings
    assert not any(can_be_mutated(each, FEATURES) for each in rings if _harvests(each))


def test_warning_without_the_difference_is_a_failure() -> None:
    assert with_problems(judged(ideal()), WARNING, *COUNTED).failed


@pytest.mark.parametrize(
    "issue", [each for each in KNOWN_ISSUES if not each.vendor], ids=lambda issue: issue.name
)
def test_mistake_in_kvm_itself_needs_no_vendor_and_no_remark_where_it_is_mended(
    issue: KnownIssue,
) -> None:
    name = min(issue.scenarios)
    assert known_issue(name, {"vendor": "kvm_amd"}) is issue
    scenario = next(each for each in catalogue(FEATURES) if each.name == name)
    assert judged(ideal_history(scenario)).verdict.status is Status.PASSED
