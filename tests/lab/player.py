"""A process that plays scenarios on wrong kernels, one after the other."""

import subprocess
import sys
from types import TracebackType
from typing import Self

from tests.lab import lab

_PLAYS = {"racing-": 16, "nothing-used-up-": 4}
"""How often scenarios of a kind are played until they differ, where once is not enough.

In a race a wrong answer may be right at that moment: of 5 plays up to three have passed. Where the
whole machine's memory is measured, what others free can hide a leak.
"""


class Player:
    """Runs ``tests.lab.play`` with the library preloaded."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.play"],
            cwd=lab.HERE.parent.parent,
            env=lab.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def play(self, fault: str, scenario: str) -> str:
        """Return the verdict's status and rule; ``-`` means no fault."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{fault} {scenario}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")

    def shows(self, fault: str, scenario: str) -> list[str]:
        """Play until the scenario differs, as often as it may take; return the verdicts."""
        plays = next((n for kind, n in _PLAYS.items() if scenario.startswith(kind)), 1)
        verdicts: list[str] = []
        while len(verdicts) < plays and not (verdicts and verdicts[-1].startswith("differs ")):
            verdicts.append(self.play(fault, scenario))
        return verdicts
