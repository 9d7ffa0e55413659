"""The formats, read by parsers that are not ours."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

import pytest
from junitparser import Error, Failure, JUnitXml, Skipped, TestCase
from tap.parser import Parser

from tests.played import INFO, make
from tests.results import (
    EVERY_KIND,
    HOSTILE,
    LEFT,
    crashed,
    differs,
    ended,
    of_status,
    passed,
    run_of,
    scenarios_of,
    skipped,
    unhealthy,
)
from vmm.report.junit import junit_report, junit_text
from vmm.report.kselftest import kselftest_status
from vmm.report.ktap import ktap_report
from vmm.report.plain import one_line
from vmm.report.reporter import Reporter, Write
from vmm.report.tap13 import tap13_report
from vmm.scenario.operations import Scenario
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked, Run

OURS = "this program failed, which says nothing about the kernel"
RUN = run_of(*EVERY_KIND, not_run=LEFT)


def told(made: Callable[[Write], Reporter], run: Run, left: Sequence[Scenario] = ()) -> str:
    """Return what a reporter writes of a run."""
    pieces: list[str] = []
    reporter = made(pieces.append)
    reporter.begin(scenarios_of(run, *left), INFO)
    for checked in run.checked:
        reporter.done(checked)
    reporter.end(run)
    return "".join(pieces)


def tap_results(text: str) -> list[tuple[int, bool, str, str]]:
    """Return (number, ok, description, directive) of the results of one level of TAP."""
    lines = list(Parser().parse_text(text))
    plan = next(line.expected_tests for line in lines if line.category == "plan")
    results = [line for line in lines if line.category == "test"]
    assert not [line for line in lines if line.category == "unknown"]
    assert [line.number for line in results] == list(range(1, len(results) + 1))
    assert len(results) <= plan
    return [(r.number, r.ok, r.description, r.directive.text) for r in results]


def ktap_levels(text: str) -> tuple[str, list[str]]:
    """Take KTAP apart: the outermost level, and each group of subtests, not indented any more."""
    outer, groups, open_group = [], [], list[str]()
    for line in text.splitlines():
        if line.startswith("  "):
            open_group.append(line[2:])
        else:
            outer.append(line)
            if open_group:
                groups.append("\n".join(open_group) + "\n")
                open_group = []
    assert not open_group
    return "\n".join(outer) + "\n", groups


def as_tap(text: str) -> str:
    return text.replace("KTAP version 1\n", "TAP version 13\n")


def test_ktap_nests_scenarios_in_subjects() -> None:
    outer, groups = ktap_levels(told(ktap_report, RUN, LEFT))
    assert outer.startswith("KTAP version 1\n1..6\n# Linux 6.99, kvm_amd, TDP on (kvm_amd.npt=1)\n")
    assert tap_results(as_tap(outer)) == [
        (1, True, "create", ""),
        (2, False, "move", ""),
        (3, True, "dirty", ""),
        (4, False, "racing", ""),
        (5, False, "access", ""),
        (6, True, "spaces", "SKIP all of its scenarios"),
    ]
    assert [group.splitlines()[:2] for group in groups] == [
        ["KTAP version 1", f"# Subtest: {name}"] for _, _, name, _ in tap_results(as_tap(outer))
    ]
    subtests = [tap_results(as_tap(group)) for group in groups]
    killed = f"ERROR died: {one_line(HOSTILE)}".replace("#", "_")
    assert subtests == [
        [
            (1, True, "create-one", ""),
            (2, True, "create-huge", "SKIP needs a huge page"),
            (3, True, "create-two", ""),
        ],
        [(1, False, "move-wrong", ""), (2, True, "left-out", "SKIP did not run")],
        [(1, True, "known-one", "XFAIL known issue an-issue"), (2, True, "known-gone", "")],
        [
            (1, False, "slow", "TIMEOUT hung: no end within 20 s; kernel stack: none"),
            (2, False, "killed", killed),
        ],
        [(1, False, "warned", ""), (2, False, "our-fault", f"ERROR {OURS}")],
        [(1, True, "spaces-one", "SKIP needs KVM_CAP_X86_SMM")],
    ]


def test_ktap_diagnoses_before_the_result() -> None:
    _, groups = ktap_levels(told(ktap_report, run_of(passed("a", "x"), differs("b", "x"))))
    lines = groups[0].splitlines()
    assert lines[3] == "ok 1 a"
    assert lines[4].startswith("# DIFFERS      b")
    assert "#   observed  EEXIST" in lines
    assert lines[-2] == "#   again     vmm check b"
    assert lines[-1] == "not ok 2 b"


def test_ktap_writes_a_subject_as_soon_as_it_is_complete() -> None:
    pieces: list[str] = []
    run = run_of(passed("a", "x"), passed("b", "y"), passed("c", "x"), passed("d", "z"))
    reporter = ktap_report(pieces.append)
    reporter.begin(scenarios_of(run), INFO)
    seen = []
    for checked in run.checked:
        reporter.done(checked)
        seen.append(len(ktap_levels("".join(pieces))[1]))
    assert seen == [0, 0, 2, 3]


def test_nothing_quoted_makes_a_line_of_its_own_in_tap() -> None:
    for made in (ktap_report, tap13_report):
        text = told(made, RUN, LEFT)
        assert text.count("forged") >= 3  # why, reason and log
        for line in text.splitlines():
            assert line.isprintable()
            assert "forged" not in line or "# " in line.partition("forged")[0]


def test_tap13_is_flat() -> None:
    text = told(tap13_report, RUN, LEFT)
    assert text.startswith("TAP version 13\n1..12\n")
    results = tap_results(text)
    assert [(ok, name) for _, ok, name, _ in results[:4]] == [
        (True, "create-one"),
        (True, "create-huge"),
        (False, "move-wrong"),
        (True, "create-two"),
    ]
    lines = [line for line in Parser().parse_text(text) if line.category == "test"]
    assert [line.description for line in lines if line.skip] == ["create-huge", "spaces-one"]
    assert [(line.description, line.ok) for line in lines if line.todo] == [("known-one", False)]
    bail = [line.reason for line in Parser().parse_text(text) if line.category == "bail"]
    assert bail == ["1 scenario did not run"]


def test_junit_has_a_suite_for_each_subject_and_stable_names() -> None:
    document = JUnitXml.fromstring(told(junit_report, RUN, LEFT).encode())
    suites = {suite.name: suite for suite in document}
    assert list(suites) == ["create", "move", "dirty", "racing", "access", "spaces"]
    assert (document.tests, document.failures, document.errors) == (12, 2, 3)
    assert sum(suite.skipped for suite in document) == 4
    cases = {case.name: case for suite in suites.values() for case in suite}
    assert cases["create-one"].classname == "memslot-vmm.create"
    assert cases["create-one"].time == 0.0125
    assert cases["left-out"].classname == "memslot-vmm.move"
    kinds = {name: kind_of(case) for name, case in cases.items()}
    assert kinds == {
        "create-one": None,
        "create-huge": (Skipped, "skip", "needs a huge page"),
        "create-two": None,
        "move-wrong": (Failure, "differs", "operation 0 breaks create: EEXIST"),
        "left-out": (Skipped, "not-run", "did not run"),
        "known-one": (Skipped, "xfail", "known issue an-issue"),
        "known-gone": None,
        "slow": (Error, "inconclusive", "hung: no end within 20 s; kernel stack: none"),
        "killed": (Error, "inconclusive", f"died: {one_line(HOSTILE)}"),
        "warned": (Failure, "kernel-complaint", "WARNING: at mmu.c:1"),
        "our-fault": (Error, "internal-error", OURS),
        "spaces-one": (Skipped, "skip", "needs KVM_CAP_X86_SMM"),
    }
    assert "vmm check move-wrong" in cases["move-wrong"].result[0].text


def kind_of(case: TestCase) -> tuple[type, str, str] | None:
    if not case.result:
        return None
    (result,) = case.result
    return type(result), result.type, result.message


JENKINS = {
    "testsuites": {"name", "time", "tests", "failures", "errors"},
    "testsuite": {"name", "time", "tests", "failures", "errors", "skipped"},
    "testcase": {"name", "classname", "time"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "skipped": {"type", "message"},
    "properties": set[str](),
    "property": {"name", "value"},
    "system-out": set[str](),
}
"""Elements, and the attributes that the schema junit-10.xsd of Jenkins' xUnit plugin gives them."""


def test_junit_has_no_attribute_that_jenkins_does_not_know() -> None:
    root = ElementTree.fromstring(told(junit_report, RUN, LEFT))
    found: dict[str, set[str]] = {}
    for element in root.iter():
        found.setdefault(element.tag, set()).update(element.attrib)
    assert found == JENKINS


def test_junit_tells_the_host_and_the_kernel_log() -> None:
    document = JUnitXml.fromstring(told(junit_report, RUN, LEFT).encode())
    suite = next(suite for suite in document if suite.name == "access")
    properties = suite.properties()  # type: ignore[no-untyped-call]
    facts = {each.name: each.value for each in properties}
    assert facts["kernel"] == "6.99"
    assert facts["vendor"] == "kvm_amd"
    case, _ = suite
    lines = case.system_out.splitlines()
    assert lines == [
        "WARNING: at mmu.c:1",
        "[ cut here ]",
        "WARNING: at mmu.c:1",
        one_line(HOSTILE),
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü", "plain ü"),
        ("a\nb\t\x1b", "a\\nb\\t\\x1b"),
        ("\ud800\uffff\u2028", "\\ud800\\uffff\\u2028"),
        ("x" * 2001, "x" * 1997 + "..."),
    ],
)
def test_one_line_is_one_printable_line(text: str, shown: str) -> None:
    assert one_line(text) == shown


@pytest.mark.parametrize(
    ("checked", "status"),
    [
        ([passed("a")], 0),
        ([passed("a"), skipped("b", "x"), of_status(differs("c"), Status.KNOWN)], 0),
        ([passed("a"), differs("b")], 1),
        ([passed("a"), ended("b", "hung: x")], 1),
        ([unhealthy("a")], 1),
        ([passed("a"), crashed("b")], 1),
        ([of_status(differs("a"), Status.KNOWN), skipped("b", "x")], 2),
        ([of_status(passed("a"), Status.PASSES_NOW), of_status(differs("b"), Status.KNOWN)], 3),
        ([skipped("a", "x")], 4),
        ([], 4),
    ],
)
def test_kselftest_statuses(checked: list[Checked], status: int) -> None:
    assert kselftest_status(run_of(*checked)) == status


def test_what_did_not_run_fails_a_selftest() -> None:
    assert kselftest_status(run_of(passed("a"), not_run=LEFT)) == 1


def test_too_few_that_ran_fail_a_selftest() -> None:
    run = run_of(skipped("a", "x"))
    assert kselftest_status(dataclasses.replace(run, required=1)) == 1
    assert kselftest_status(dataclasses.replace(run, error="Traceback")) == 1


def test_a_host_that_cannot_run_anything_is_a_plan_of_nothing() -> None:
    info = dataclasses.replace(INFO, obstacle="/dev/kvm: No such file # here")
    for made, version in ((ktap_report, "KTAP version 1"), (tap13_report, "TAP version 13")):
        pieces: list[str] = []
        reporter = made(pieces.append)
        reporter.begin((), info)
        reporter.end(dataclasses.replace(run_of(), host=info, obstacle=info.obstacle))
        assert pieces[0].startswith(f"{version}\n1..0 # SKIP /dev/kvm: No such file _ here\n")
        (plan,) = (x for x in Parser().parse_text("".join(pieces)) if x.category == "plan")
        assert plan.skip


def test_what_ended_a_run_early_is_told() -> None:
    run = dataclasses.replace(run_of(passed("a", "x"), not_run=LEFT), early="3 scenarios hung")
    text = told(ktap_report, run, LEFT)
    assert "  not ok 1 left-out # ERROR did not run: 3 scenarios hung\n" in text
    assert "# note: 3 scenarios hung\n" in text
    assert "# note: 3 scenarios hung\n" in told(tap13_report, run, LEFT)
    junit = junit_text(scenarios_of(run, *LEFT), run)
    assert 'message="did not run: 3 scenarios hung"' in junit


def test_a_scenario_that_did_not_run_is_no_failure_where_another_has_failed() -> None:
    why = "--max-differences 1 is reached"
    other = (*LEFT, make("never", "flags"))
    failed = dataclasses.replace(run_of(differs("a", "x"), not_run=other), early=why)
    text = told(ktap_report, failed, other)
    assert f"  ok 1 left-out # SKIP did not run: {why}\n" in text
    assert "\nok 3 flags # SKIP all of its scenarios\n" in text
    assert text.count("not ok ") == 2
    assert failed.exit_status == 1
    document = JUnitXml.fromstring(junit_text(scenarios_of(failed, *other), failed).encode())
    assert (document.tests, document.failures, document.errors) == (3, 1, 0)


def test_names_and_order_do_not_depend_on_the_results() -> None:
    good = run_of(*(passed(c.scenario.name, *c.scenario.tags) for c in EVERY_KIND))
    chosen = scenarios_of(RUN)
    for text, other in (
        (junit_text(chosen, good), junit_text(chosen, RUN)),
        (told(ktap_report, good), told(ktap_report, RUN)),
    ):
        assert names_in(text) == names_in(other)
        assert len(names_in(text)) >= len(EVERY_KIND)


def names_in(text: str) -> list[str]:
    pattern = r'<testcase [^>]*?name="([^"]*)"|^ *(?:not )?ok \d+ ([\w-]+)'
    return [a or b for a, b in re.findall(pattern, text, re.MULTILINE)]
