"""A run as JUnit XML, for CI servers: a test suite for each subject.

A difference is a failure, an inconclusive verdict an error; a known issue that shows is skipped
with type ``xfail``, as in pytest. What an early end left out is skipped if something has failed
already, else an error. What the kernel logged is in ``system-out``.
"""

from collections.abc import Iterator, Sequence
from io import BytesIO

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite
from junitparser.junitparser import FinalResult

from vmm.host.hostinfo import HostInfo
from vmm.report.ktap import name_of, reason_of, why_left_out
from vmm.report.plain import diagnosis, one_line
from vmm.report.reporter import Reporter, Write, by_subject, subject_of
from vmm.report.text import check_again
from vmm.scenario.operations import Scenario
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked, Run

_NAME = "memslot-vmm"
_RUN = "run"


class _Document(JUnitXml):
    """A document whose root has no count of skips: Jenkins' schema allows it on suites only."""

    skipped = 0  # Replaces the property that would write the attribute.


def junit_report(write: Write) -> Reporter:
    """Return a reporter that writes the whole document at the end."""
    chosen: list[Scenario] = []

    def begin(scenarios: Sequence[Scenario], host: HostInfo) -> None:
        chosen.extend(scenarios)

    def end(run: Run) -> None:
        write(junit_text(chosen, run))

    return Reporter(begin, lambda checked: None, end)


def junit_text(scenarios: Sequence[Scenario], run: Run) -> str:
    """Return a run of scenarios as an XML document."""
    results = {checked.scenario.name: checked for checked in run.checked}
    document = _Document(_NAME)
    for subject, members in by_subject(scenarios).items():
        suite = TestSuite(name_of(subject))
        for name, value in _facts(run.host):
            suite.add_property(name, one_line(value))
        cases = (_case(scenario, results.get(scenario.name), run) for scenario in members)
        suite.add_testcases(list(cases))
        document.add_testsuite(suite)
    if not scenarios:
        document.add_testsuite(_of_nothing(run))
    document.update_statistics()  # type: ignore[no-untyped-call]
    written = BytesIO()
    document.write(written)
    return written.getvalue().decode() + "\n"


def _of_nothing(run: Run) -> TestSuite:
    """Return a suite that says why there is no scenario: one without a case would be green."""
    suite = TestSuite(_RUN)
    case = TestCase(_RUN, f"{_NAME}.{_RUN}")
    if run.status is Status.SKIPPED:
        case.result = [Skipped(one_line(run.obstacle), "skip")]
    else:
        why = one_line(run.early) or "this program failed, which says nothing about the kernel"
        case.result = [Error(why, run.status.value.replace(" ", "-"))]
    suite.add_testcase(case)
    return suite


def _facts(host: HostInfo) -> Iterator[tuple[str, str]]:
    yield from host.in_brief().items()
    yield "hypervisor", "yes" if host.hypervisor else "no"


def _case(scenario: Scenario, checked: Checked | None, run: Run) -> TestCase:
    where = f"{_NAME}.{name_of(subject_of(scenario))}"
    if checked is None:
        case = TestCase(name_of(scenario.name), where)
        kind = Skipped if run.status is Status.DIFFERS else Error
        case.result = [kind(one_line(why_left_out(run)), "not-run")]
        return case
    case = TestCase(name_of(scenario.name), where, round(checked.seconds, 4))
    result = _result(checked)
    if result is not None:
        case.result = [result]
    log = [line for problem in checked.problems for line in (problem.what, *problem.excerpt)]
    if log:
        case.system_out = "\n".join(map(one_line, log))
    return case


def _result(checked: Checked) -> FinalResult | None:
    status = checked.verdict.status
    found: FinalResult
    if checked.failed:
        kind = "differs" if status is Status.DIFFERS else "kernel-complaint"
        found = Failure(_message(checked), kind)
    elif status in (Status.INCONCLUSIVE, Status.INTERNAL_ERROR):
        found = Error(reason_of(checked), status.value.replace(" ", "-"))
    elif status is Status.SKIPPED:
        return Skipped(reason_of(checked), "skip")
    elif status is Status.KNOWN:
        found = Skipped(reason_of(checked), "xfail")
    else:
        return None
    found.text = "\n".join(diagnosis(checked, check_again(checked)))
    return found


def _message(checked: Checked) -> str:
    difference = checked.verdict.difference
    if difference is None:
        return one_line("; ".join(problem.what for problem in checked.unexplained))
    rules = ", ".join(dict.fromkeys(each.rule for each in difference.expected))
    return one_line(f"operation {difference.origin} breaks {rules}: {difference.observed}")
