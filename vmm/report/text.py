"""A run for people: what does not pass, and what it amounts to."""

import shlex
from collections.abc import Callable, Iterable

from rich.text import Text

from vmm.report import terminal
from vmm.report.reporter import Reporter
from vmm.verdict import groups
from vmm.verdict.judge import Status
from vmm.verdict.probing import PROBING
from vmm.verdict.result import Checked, Run

Print = Callable[[Iterable[Text]], object]
"""Takes lines of styled text."""


def text_report(show: Print, width: int | None, verbose: bool = False) -> Reporter:
    """Return a reporter of what did not pass, wrapped at ``width`` columns if given.

    Scenarios that differ by one cause are told of together at the end, and so are skips; with
    ``verbose`` each result is shown at once, and refused region calls are counted at the end.
    """

    def done(checked: Checked) -> None:
        if verbose or not _is_grouped(checked):
            show(terminal.scenario_report(checked, check_again(checked), width))

    def end(run: Run) -> None:
        if not verbose:
            for skips in groups.skipped(run.checked):
                show(terminal.skipped(skips, width))
            for group in groups.differing(run.checked):
                again = check_again(group.shortest)
                show(terminal.scenario_report(group.shortest, again, width))
                show(terminal.others(group, width))
        else:
            show(terminal.refused_in(run, width))
        if run.checked or run.not_run:
            show(terminal.summary(run, width))

    return Reporter(lambda scenarios, host: None, done, end)


def _is_grouped(checked: Checked) -> bool:
    """Whether a result is told of at the end. What the kernel complained of is told at once."""
    verdict = checked.verdict
    return not checked.problems and (
        verdict.status is Status.SKIPPED or verdict.status is Status.DIFFERS
    )


def check_again(checked: Checked) -> str:
    """Return the command that runs a curated scenario again, or asks the kernel again."""
    if checked.scenario == PROBING:
        return "vmm info"
    return f"vmm check {shlex.quote(checked.scenario.name)}"
