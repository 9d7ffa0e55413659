"""A run as TAP version 13: a flat list of scenarios, with SKIP and TODO as the only directives.

A known issue that shows is ``not ok`` with the directive TODO, as in TAP.
"""

from collections.abc import Sequence

from vmm.host.hostinfo import HostInfo
from vmm.report.ktap import is_ok, name_of, notes, nothing_planned, reason_of
from vmm.report.plain import diagnosis, one_line
from vmm.report.reporter import Reporter, Write
from vmm.report.text import check_again
from vmm.scenario.operations import Scenario
from vmm.scenario.words import counted
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked, Run


def tap13_report(write: Write) -> Reporter:
    """Return a reporter that writes each result at once."""
    names: list[str] = []
    written = 0

    def begin(scenarios: Sequence[Scenario], host: HostInfo) -> None:
        names.extend(scenario.name for scenario in scenarios)
        kernel = one_line(f"Linux {host.kernel}, {host.vendor or 'KVM'}, TDP {host.tdp}")
        plan = f"1..{len(names)}" if names else nothing_planned(host)
        write(f"TAP version 13\n{plan}\n# {kernel}\n")

    def done(checked: Checked) -> None:
        nonlocal written
        written += 1
        write(_result(written, checked))

    def end(run: Run) -> None:
        write("".join(f"{note}\n" for note in notes(run)))
        if written < len(names):
            write(f"Bail out! {counted(len(names) - written, 'scenario')} did not run\n")
        elif not names and run.status not in (Status.SKIPPED, Status.PASSED):
            write(f"Bail out! {one_line(run.early) or 'this program failed'}\n")

    return Reporter(begin, done, end)


def _result(number: int, checked: Checked) -> str:
    status = checked.verdict.status
    is_skipped = status is Status.SKIPPED
    said = [] if is_skipped else diagnosis(checked, check_again(checked))
    known = status is Status.KNOWN and not checked.failed
    directive = ""
    if is_skipped or known:
        directive = f" # {'SKIP' if is_skipped else 'TODO'} {name_of(reason_of(checked))}"
    word = "ok" if is_ok(checked) and not known else "not ok"
    result = f"{word} {number} {name_of(checked.scenario.name)}{directive}"
    return "".join(f"{line}\n" for line in (*(f"# {line}" for line in said), result))
