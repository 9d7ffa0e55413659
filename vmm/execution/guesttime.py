"""Ends a guest that never leaves KVM_RUN: a periodic signal checks its time.

A kernel that hangs does not return for a signal; a guest that loops does, so the two endings are
told apart.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GUEST_LIMIT_S = 5.0
"""The time limit of a guest between two exits, a thousand times what is usual."""

_TICKS = 4
_SIGNAL = signal.SIGALRM


class GuestEndlessError(Exception):
    """A guest was still running when its time was over."""


class GuestClock:
    """Measures how long the guests of this process run, each in its own thread."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: dict[int, float] = {}
        self._ticked_at = time.monotonic()
        self.paused_s = 0.0
        """How long this process was stopped, which no guest's time counts."""

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Interrupt guests whose time is over, until the block ends.

        Only the main thread can set this up; in another thread, no guest is interrupted.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(_SIGNAL, self._tick)
        self._ticked_at = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, *(2 * [self._tick_s]))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(_SIGNAL, before)

    def begin(self) -> None:
        """Start the time of this thread's guest."""
        self._since[threading.get_ident()] = self._now_s()

    def end(self) -> None:
        """Stop the time of this thread's guest, which has left KVM_RUN."""
        self._since.pop(threading.get_ident(), None)

    def check(self) -> None:
        """Raise GuestEndlessError if the time of this thread's guest is over."""
        if self._is_over(threading.get_ident()):
            raise GuestEndlessError(f"the guest has no exit within {self._limit_s:g} s")

    @property
    def _tick_s(self) -> float:
        return self._limit_s / _TICKS

    def _now_s(self) -> float:
        return time.monotonic() - self.paused_s

    def _is_over(self, thread: int) -> bool:
        now_s = self._now_s()
        return now_s - self._since.get(thread, now_s) > self._limit_s

    def _tick(self, number: int, frame: FrameType | None) -> None:
        """Pass the signal on to other threads whose guest has run for too long.

        A signal that comes late has waited for a stopped process (SIGSTOP, Ctrl-Z) to go on.
        """
        now = time.monotonic()
        late_s = now - self._ticked_at - self._tick_s
        self._ticked_at = now
        if late_s > self._tick_s:
            self.paused_s += late_s
        for thread in tuple(self._since):
            if thread != threading.main_thread().ident and self._is_over(thread):
                signal.pthread_kill(thread, _SIGNAL)
