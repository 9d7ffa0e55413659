"""Measures for how long processes could not run: SIGSTOP, Ctrl-Z, a paused or a busy machine.

Time limits are for what the kernel does, and nothing of it happens then.
"""

import time
from collections.abc import Callable

LOOK_EVERY_S = 0.5
"""How long to wait at most before looking again."""

_MOST_LATE_S = 2 * LOOK_EVERY_S


_MOST_STARVED = 9
"""How many times its limit a process may have waited for a CPU: on a busy machine it needs longer,
and that is no hang.
"""


class Starvation:
    """How long a process has waited for a CPU since a moment, as far as a limit allows for it."""

    def __init__(self) -> None:
        self._before_s = 0.0

    def begin(self, waited_s: float) -> None:
        """Begin to count at a moment when the process has waited for ``waited_s`` in all."""
        self._before_s = waited_s

    def counted_s(self, waited_s: float, limit_s: float) -> float:
        """Return how much longer than ``limit_s`` the process may take, having waited by now."""
        return min(max(waited_s - self._before_s, 0.0), _MOST_STARVED * limit_s)


class Pauses:
    """Adds up the time between two looks that this process, or the one it watches, was stopped.

    ``seconds`` counts both; ``stopped_s`` only what the other was stopped while this one ran.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin to count from 0."""
        self._looked_at = time.monotonic()
        self.seconds = self.stopped_s = 0.0

    def look(self, is_stopped: Callable[[], bool]) -> float:
        """Count the time since the last look, and return how much of it nothing could happen.

        If that was much longer ago than `LOOK_EVERY_S`, this process was stopped itself; if it was
        a moment ago, nothing is asked or counted yet.
        """
        now = time.monotonic()
        since = now - self._looked_at
        if since < LOOK_EVERY_S / 2:
            return 0.0
        self._looked_at = now
        awake = since if since < _MOST_LATE_S else LOOK_EVERY_S
        paused = since - awake
        if is_stopped():
            self.stopped_s += awake
            paused = since
        self.seconds += paused
        return paused
