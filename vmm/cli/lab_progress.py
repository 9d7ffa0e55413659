"""How far a command in the lab's machine is, as its log says."""

import sys
import time
from collections.abc import Sequence

import click

from vmm.cli.lab_machines import say
from vmm.lab.log import Reports
from vmm.lab.run import Ending
from vmm.scenario.endings import INTERRUPTED
from vmm.verdict.statuses import INCONCLUSIVE

_SAY_EVERY_S = 30.0


class Progress:
    """One line that is drawn again and again on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._is_drawn = False
        self._said = ""
        self._said_at = time.monotonic()

    def tell(self, reports: Reports) -> None:
        """Say how far a check is, if that is new."""
        if reports.under_way:
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
        """Take the line away, since something else is printed."""
        if self._is_drawn:
            click.echo("\r\033[K", nl=False, err=True)
            self._is_drawn = False


def interrupted(reports: Reports) -> Ending:
    """Return what there is to say when somebody interrupts a machine."""
    name = reports.under_way
    why = f"{INTERRUPTED} in {name}" if name else INTERRUPTED
    return Ending(INCONCLUSIVE, why, reports=reports)


def together(every: Sequence[Reports]) -> Reports:
    """Return what machines that share a check's scenarios have told."""
    return Reports(
        scenarios=max(each.scenarios for each in every),
        begun=sum(each.begun for each in every),
        under_way=" and ".join(each.under_way for each in every if each.under_way),
    )
