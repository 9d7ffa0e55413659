"""Ctrl-C sets a flag that is checked between steps, so that nothing is left half done."""

import signal
from types import FrameType
from typing import Self

from vmm.host.signals import ENDING_SIGNALS, SignalledError


class Interruption:
    """Whether Ctrl-C was pressed. A second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._ask) for number in ENDING_SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(ENDING_SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise SignalledError
        self.asked = True
