"""A run as text for people: what did not pass, and a summary."""

import shlex
from collections.abc import Callable, Iterable
from enum import Enum

from rich.text import Text

from vmm.report import terminal
from vmm.report.reporter import Reporter
from vmm.verdict import groups
from vmm.verdict.judge import Status
from vmm.verdict.probing import PROBING
from vmm.verdict.result import Checked, Run

Print = Callable[[Iterable[Text]], object]
"""Prints lines of styled text."""

_UNDECIDED = (Status.INCONCLUSIVE, Status.INTERNAL_ERROR)


class Detail(Enum):
    """How much is shown: a line for each fault, what did not pass, or every result."""

    QUIET = "quiet"
    USUAL = "usual"
    VERBOSE = "verbose"


def text_report(show: Print, width: int | None, detail: Detail = Detail.USUAL) -> Reporter:
    """Return a reporter of what did not pass, wrapped at ``width`` columns if given.

    Scenarios that differ by one cause, or meet one known issue, are shown together at the end, and
    so are skips. VERBOSE shows each result at once, and refused region calls at the end. QUIET
    shows one line for each fault, and the line with the counts.
    """
    if detail is Detail.QUIET:
        return _quiet_report(show, width)
    verbose = detail is Detail.VERBOSE

    def done(checked: Checked) -> None:
        if verbose or not _is_grouped(checked):
            show(terminal.scenario_report(checked, check_again(checked), width))

    def show_alike(alike: Iterable[groups.Alike]) -> None:
        for group in alike:
            show(terminal.scenario_report(group.shortest, check_again(group.shortest), width))
            show(terminal.others(group, width))

    def end(run: Run) -> None:
        if not verbose:
            grouped = [each for each in run.checked if _is_grouped(each)]
            show_alike(groups.known(grouped))
            for skips in groups.skipped(grouped):
                show(terminal.skipped(skips, width))
            show_alike(groups.differing(grouped))
        else:
            show(terminal.refused_in(run, width))
        if run.checked or run.not_run:
            show(terminal.summary(run, width))

    return Reporter(lambda scenarios, host: None, done, end)


def single_report(show: Print, width: int | None, detail: Detail = Detail.USUAL) -> Reporter:
    """Return a reporter that shows every result in turn, passes included.

    VERBOSE names the rules that a result was judged by.
    """

    def done(checked: Checked) -> None:
        if detail is Detail.QUIET:
            show(terminal.headline(checked, width))
            return
        show(terminal.single(checked, check_again(checked), width))
        if detail is Detail.VERBOSE:
            show(terminal.rules(checked, width))

    def end(run: Run) -> None:
        if len(run.checked) > 1:
            show([terminal.counts(run.counts)])
        show(terminal.remarks(run, width))

    return Reporter(lambda scenarios, host: None, done, end)


def _quiet_report(show: Print, width: int | None) -> Reporter:
    def done(checked: Checked) -> None:
        if checked.failed or checked.verdict.status in _UNDECIDED:
            show(terminal.headline(checked, width))

    def end(run: Run) -> None:
        if run.checked or run.not_run:
            show([*terminal.left_out(run, width), terminal.summary(run, width)[-1]])

    return Reporter(lambda scenarios, host: None, done, end)


def _is_grouped(checked: Checked) -> bool:
    """Whether a result is shown at the end, with others; one with complaints is shown at once."""
    return not checked.problems and checked.verdict.status in (
        Status.SKIPPED,
        Status.DIFFERS,
        Status.KNOWN,
    )


def check_again(checked: Checked) -> str:
    """Return the command that shows a result again."""
    if checked.again:
        return checked.again
    if checked.scenario == PROBING:
        return "vmm info"
    return f"vmm check {shlex.quote(checked.scenario.name)}"
