"""A run as KTAP version 1 (Documentation/dev-tools/ktap.rst).

Subjects are tests, and scenarios their subtests. A known issue that shows is ``ok`` with the
directive XFAIL, as in kselftest; an inconclusive scenario is ``not ok``, with TIMEOUT if it hung,
else ERROR. What an early end left out is skipped if something has failed already, else an ERROR.
"""

from collections.abc import Iterator, Sequence

from vmm.host.hostinfo import HostInfo
from vmm.report.plain import diagnosis, one_line
from vmm.report.reporter import Reporter, Write, by_subject
from vmm.report.text import check_again
from vmm.scenario.operations import Scenario
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked, Run

VERSION = "KTAP version 1"
_INDENT = "  "


def ktap_report(write: Write) -> Reporter:
    """Return a reporter that writes each subject once all of its scenarios have ended."""
    document = _Document(write)
    return Reporter(document.begin, document.done, document.end)


class _Document:
    def __init__(self, write: Write) -> None:
        self._write = write
        self._subjects: dict[str, list[Scenario]] = {}
        self._results: dict[str, Checked] = {}
        self._written = 0
        self._left_out = ""
        self._failed = False

    def begin(self, scenarios: Sequence[Scenario], host: HostInfo) -> None:
        self._subjects = by_subject(scenarios)
        kernel = f"Linux {host.kernel}, {host.vendor or 'KVM'}, TDP {host.tdp}"
        plan = f"1..{len(self._subjects)}" if scenarios else nothing_planned(host)
        self._lines([VERSION, plan, f"# {one_line(kernel)}"])

    def done(self, checked: Checked) -> None:
        self._results[checked.scenario.name] = checked
        left = list(self._subjects.items())[self._written :]
        for subject, scenarios in left:
            if any(scenario.name not in self._results for scenario in scenarios):
                break
            self._subject(subject, scenarios)

    def end(self, run: Run) -> None:
        self._left_out, self._failed = why_left_out(run), run.status is Status.DIFFERS
        for subject, scenarios in list(self._subjects.items())[self._written :]:
            self._subject(subject, scenarios)
        self._lines(notes(run))

    def _subject(self, subject: str, scenarios: Sequence[Scenario]) -> None:
        self._written += 1
        self._lines(f"{_INDENT}{line}" for line in self._subtests(subject, scenarios))
        results = [self._results.get(scenario.name) for scenario in scenarios]
        skipped = all(
            each.verdict.status is Status.SKIPPED if each else self._failed for each in results
        )
        word = "ok" if all(is_ok(each) if each else self._failed for each in results) else "not ok"
        directive = " # SKIP all of its scenarios" if skipped else ""
        self._lines([f"{word} {self._written} {name_of(subject)}{directive}"])

    def _subtests(self, subject: str, scenarios: Sequence[Scenario]) -> Iterator[str]:
        yield VERSION
        yield f"# Subtest: {name_of(subject)}"
        yield f"1..{len(scenarios)}"
        for number, scenario in enumerate(scenarios, 1):
            name = name_of(scenario.name)
            checked = self._results.get(scenario.name)
            if checked is None:
                result, directive = ("ok", "SKIP") if self._failed else ("not ok", "ERROR")
                yield f"{result} {number} {name} # {directive} {name_of(self._left_out)}"
                continue
            if checked.verdict.status is not Status.SKIPPED:
                yield from (f"# {line}" for line in diagnosis(checked, check_again(checked)))
            word = "ok" if is_ok(checked) else "not ok"
            yield f"{word} {number} {name}{_directive(checked)}"

    def _lines(self, lines: Iterator[str] | Sequence[str]) -> None:
        self._write("".join(f"{line}\n" for line in lines))


def nothing_planned(host: HostInfo) -> str:
    """Return the plan of a run without scenarios: a skip if the host is the reason."""
    return f"1..0 # SKIP {name_of(host.obstacle)}" if host.obstacle else "1..0"


def notes(run: Run) -> Iterator[str]:
    """Yield, as diagnostics, what weakens a run and what ended it early."""
    texts = (*run.weaknesses, run.early, *run.error.splitlines())
    return (f"# note: {one_line(text)}" for text in texts if text)


def why_left_out(run: Run) -> str:
    """Return the reason why an early end left scenarios out."""
    return f"did not run{f': {run.early}' if run.early else ''}"


def is_ok(checked: Checked) -> bool:
    """Whether a result counts as ok, as passes, skips and known issues do."""
    match checked.verdict.status:
        case Status.PASSED | Status.PASSES_NOW | Status.KNOWN | Status.SKIPPED:
            return not checked.failed
        case Status.DIFFERS | Status.INCONCLUSIVE | Status.INTERNAL_ERROR:
            return False


def name_of(text: str) -> str:
    """Return text fit for a description or a directive's reason: neither may contain ``#``."""
    return one_line(text).replace("#", "_")


def reason_of(checked: Checked) -> str:
    """Return the reason for a directive; a known issue is named, since its name is stable."""
    if checked.verdict.status is Status.INTERNAL_ERROR:
        return "this program failed, which says nothing about the kernel"
    if checked.issue is not None and checked.verdict.status is Status.KNOWN:
        return f"known issue {checked.issue.name}"
    return one_line(checked.verdict.reason)


def _directive(checked: Checked) -> str:
    if checked.failed:
        return ""
    match checked.verdict.status:
        case Status.SKIPPED:
            return f" # SKIP {name_of(reason_of(checked))}"
        case Status.KNOWN:
            return f" # XFAIL {name_of(reason_of(checked))}"
        case Status.INCONCLUSIVE | Status.INTERNAL_ERROR:
            word = "TIMEOUT" if checked.verdict.reason.startswith("hung") else "ERROR"
            return f" # {word} {name_of(reason_of(checked))}"
        case Status.PASSED | Status.PASSES_NOW | Status.DIFFERS:
            return ""
