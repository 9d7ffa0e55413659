"""Text that may be from a file, or from a kernel's log, made fit for one line of a report."""

from vmm.report import terminal
from vmm.scenario.shown import shown
from vmm.verdict.result import Checked

_MOST = 2000


def one_line(text: str) -> str:
    """Return text as one line of printable characters; others are escaped as Python does.

    So no line of a report can be made by what is quoted in it, and no terminal be steered. Very
    long text is cut.
    """
    return shown(text, _MOST)


def diagnosis(checked: Checked, again: str) -> list[str]:
    """Return all that there is to say of a scenario, as lines; nothing if it passed.

    ``again`` is the command that shows it again.
    """
    return [one_line(line.plain) for line in terminal.scenario_report(checked, again, None)]
