"""Tells the lab, from inside a machine, which scenario is under way.

It does so in the kernel's log, in order with the kernel's own messages, so that it is known of a
machine that dies or hangs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vmm.lab.log import SIGN
from vmm.scenario.operations import Scenario

LOG = "/dev/kmsg"


class Live:
    """Writes lines to the lab; writes nothing outside of the lab."""

    def __init__(self, log: int | None, sign: str) -> None:
        self._log = log
        self._sign = sign

    def begin(self, scenario: Scenario) -> None:
        """Report that a scenario begins."""
        self.say(f"begin {scenario.name}")

    def skip(self, scenario: Scenario) -> None:
        """Report that a scenario does not run."""
        self.say(f"skip {scenario.name}")

    def say(self, text: str) -> None:
        """Write a line for the lab; a failure is ignored."""
        if self._log is not None:
            with suppress(OSError):
                os.write(self._log, f"<1>{self._sign} {text}".encode())


@contextmanager
def live() -> Iterator[Live]:
    """Yield what writes to the lab, if this is one of its machines."""
    sign = os.environ.get(SIGN)
    if not sign:
        yield Live(None, "")
        return
    try:
        log = os.open(LOG, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        yield Live(None, "")
        return
    try:
        yield Live(log, sign)
    finally:
        os.close(log)
