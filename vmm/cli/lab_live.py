"""What a check in the lab's machine tells outside: which scenario is under way.

It stands in the kernel's log, among what the kernel says, so that a machine that dies or hangs has
said it before.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vmm.lab.log import SIGN
from vmm.scenario.operations import Scenario

LOG = "/dev/kmsg"


class Live:
    """Writes lines, or nothing outside of the lab."""

    def __init__(self, log: int | None, sign: str) -> None:
        self._log = log
        self._sign = sign

    def begin(self, scenario: Scenario) -> None:
        """Say that a scenario begins."""
        self.say(f"begin {scenario.name}")

    def skip(self, scenario: Scenario) -> None:
        """Say that a scenario does not run."""
        self.say(f"skip {scenario.name}")

    def say(self, text: str) -> None:
        """Write a line of the lab's. That it cannot be written is no reason to stop."""
        if self._log is not None:
            with suppress(OSError):
                os.write(self._log, f"<1>{self._sign} {text}".encode())


@contextmanager
def live() -> Iterator[Live]:
    """Yield what tells the lab, where this is one."""
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
