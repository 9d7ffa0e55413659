"""What machines that share a check print: whole lines, and what several say alike once."""

from vmm.lab.process import Sink


class SharedLines:
    """Hands lines of several machines on to a ``sink``."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._said = set[bytes]()
        self._every: list[_Lines] = []

    def of_one(self) -> Sink:
        """Return what takes the bytes that one more machine prints."""
        lines = _Lines(self)
        self._every.append(lines)
        return lines.take

    def end(self) -> None:
        """Hand on what has no end of its line."""
        for lines in self._every:
            lines.take(b"\n" if lines.rest else b"")

    def say(self, line: bytes) -> None:
        """Hand a line on, unless it has been."""
        if line not in self._said:
            self._said.add(line)
            self._sink(line)


class _Lines:
    """The lines of one machine; ``rest`` is the beginning of one."""

    def __init__(self, shared: SharedLines) -> None:
        self._shared = shared
        self.rest = b""

    def take(self, data: bytes) -> None:
        *whole, self.rest = (self.rest + data).split(b"\n")
        for line in whole:
            self._shared.say(line + b"\n")
