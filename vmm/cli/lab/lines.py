"""What machines that share a check print: whole lines, and identical ones only once."""

from vmm.lab.process import Sink


class SharedLines:
    """Passes the lines of several machines to a ``sink``."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._said = set[bytes]()
        self._every: list[_Lines] = []

    def of_one(self) -> Sink:
        """Return a sink for the output of one more machine."""
        lines = _Lines(self)
        self._every.append(lines)
        return lines.take

    def end(self) -> None:
        """Pass on incomplete last lines."""
        for lines in self._every:
            lines.take(b"\n" if lines.rest else b"")

    def say(self, line: bytes) -> None:
        """Pass a line on, unless it was already."""
        if line not in self._said:
            self._said.add(line)
            self._sink(line)


class _Lines:
    """The lines of one machine; ``rest`` is the incomplete last one."""

    def __init__(self, shared: SharedLines) -> None:
        self._shared = shared
        self.rest = b""

    def take(self, data: bytes) -> None:
        *whole, self.rest = (self.rest + data).split(b"\n")
        for line in whole:
            self._shared.say(line + b"\n")
