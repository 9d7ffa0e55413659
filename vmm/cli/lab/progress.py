"""Shows the progress of a command in the lab's machine, as its log reports it."""

import sys
import time
from collections.abc import Sequence

import click

from vmm.cli.lab.machines import say
from vmm.lab.log import Reports
from vmm.lab.run import Ending
from vmm.scenario.endings import INTERRUPTED
from vmm.verdict.statuses import INCONCLUSIVE

_SAY_EVERY_S = 30.0


class Progress:
    """A line that is redrawn on a terminal; elsewhere a new line every 30 s."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._has_spoken = False
        self._is_terminal = sys.stderr.isatty()
        self._is_drawn = False
        self._said = ""
        self._said_at = time.monotonic()

    def wait(self) -> None:
        """Show that a machine boots, and for how long already, until it says something."""
        if not self._has_spoken:
            self.line(f"the machine boots: {self.seconds} s")

    def heard(self) -> None:
        """Note that a machine says something: it does not boot any longer."""
        self._has_spoken = True
        self.clear()

    @property
    def seconds(self) -> int:
        """How long this runs already."""
        return int(time.monotonic() - self._start)

    def tell(self, reports: Reports) -> None:
        """Show how far a check is, if that has changed."""
        if reports.under_way:
            self._has_spoken = True
            self.line(f"{reports.begun} of {reports.scenarios} scenarios, {reports.under_way}")

    def line(self, text: str) -> None:
        """Say a line of progress, if it is new."""
        if text == self._said:
            return
        now = time.monotonic()
        if self._is_terminal:
            self.clear()
            click.echo(f"lab: {text}"[:79], nl=False, err=True)
            self._is_drawn = True
        elif now - self._said_at >= _SAY_EVERY_S:
            say(text)
            self._said_at = now
        self._said = text

    def clear(self) -> None:
        """Erase the line before something else is printed."""
        if self._is_drawn:
            click.echo("\r\033[K", nl=False, err=True)
            self._is_drawn = False


def interrupted(reports: Reports) -> Ending:
    """Return the ending of a machine that was interrupted."""
    name = reports.under_way
    why = f"{INTERRUPTED} in {name}" if name else INTERRUPTED
    return Ending(INCONCLUSIVE, why, reports=reports)


def together(every: Sequence[Reports]) -> Reports:
    """Return the joint reports of machines that share a check's scenarios."""
    return Reports(
        scenarios=max(each.scenarios for each in every),
        begun=sum(each.begun for each in every),
        under_way=" and ".join(each.under_way for each in every if each.under_way),
    )
