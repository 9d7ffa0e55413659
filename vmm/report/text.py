"""A run for people: what does not pass, and what it amounts to."""

import shlex
from collections.abc import Callable, Iterable

from rich.text import Text

from vmm.report import terminal
from vmm.report.reporter import Reporter
from vmm.verdict.result import Checked, Run

Print = Callable[[Iterable[Text]], object]
"""Takes lines of styled text."""


def text_report(show: Print, width: int | None) -> Reporter:
    """Return a reporter that shows each result at once, wrapped at ``width`` columns if given."""

    def done(checked: Checked) -> None:
        show(terminal.scenario_report(checked, check_again(checked), width))

    def end(run: Run) -> None:
        show(terminal.summary(run, width))

    return Reporter(lambda scenarios, host: None, done, end)


def check_again(checked: Checked) -> str:
    """Return the command that runs a curated scenario again."""
    return f"vmm check {shlex.quote(checked.scenario.name)}"
