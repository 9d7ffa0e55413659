"""Makes text from a file or a kernel log fit for one line of a report."""

from vmm.report import terminal
from vmm.scenario.shown import shown
from vmm.verdict.result import Checked

_MOST = 2000


def one_line(text: str) -> str:
    """Return text as one line of printable characters; others are escaped as Python does.

    So quoted text can neither forge a line of a report nor control a terminal. Very long text is
    cut.
    """
    return shown(text, _MOST)


def diagnosis(checked: Checked, again: str) -> list[str]:
    """Return the whole report on a scenario as lines; none if it passed.

    ``again`` is the command that shows it again.
    """
    return [one_line(line.plain) for line in terminal.scenario_report(checked, again, None)]
