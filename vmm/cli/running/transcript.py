"""The transcript of a run that is judged elsewhere: a file that can be read while it grows.

Each part is a line of JSON; a line ``ran`` is followed by the bytes of that scenario's history.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Protocol

import msgspec

from vmm.cli.lab.live import Live
from vmm.cli.running.carrying import Carried, Finished
from vmm.cli.running.host import Host
from vmm.execution.runner import Record
from vmm.host.health import Problem
from vmm.host.hostinfo import HostInfo
from vmm.scenario.features import Features
from vmm.scenario.history import Header
from vmm.scenario.operations import Scenario
from vmm.scenario.trouble import Trouble
from vmm.scenario.undecodable import UNDECODABLE


class BrokenError(Exception):
    """A transcript that cannot be read."""


class Opening(msgspec.Struct, frozen=True, tag="opening"):
    """The host, and the names of the scenarios that will run."""

    host: HostInfo
    features: Features
    scenarios: tuple[str, ...]
    probe_failure: Trouble | None = None


class Skipped(msgspec.Struct, frozen=True, tag="skipped"):
    """A scenario that does not run, and what is missing."""

    index: int
    missing: str


class _Ran(msgspec.Struct, frozen=True, tag="ran"):
    """A scenario that ran, without its history."""

    index: int
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    seconds: float
    reason: str
    problems: tuple[Problem, ...]


class LastPart(msgspec.Struct, frozen=True, tag="closing"):
    """The last part."""

    carried: Carried


News = Opening | Skipped | Finished | LastPart
"""The parts as a reader gets them."""

_Part = Opening | Skipped | _Ran | LastPart
_DECODER: msgspec.json.Decoder[_Part] = msgspec.json.Decoder(_Part)


class Written(Protocol):
    """What a transcript is written to."""

    def write(self, data: memoryview, /) -> int:
        """Write some of the data at once; return how much."""


class Packed:
    """Writes to a serial line, which is slow: compressed, but each part at once."""

    def __init__(self, line: IO[bytes]) -> None:
        self._line = line
        self._packer = zlib.compressobj(1)

    def write(self, data: memoryview, /) -> int:
        """Write all of the data. Raises OSError."""
        self._line.write(self._packer.compress(data) + self._packer.flush(zlib.Z_SYNC_FLUSH))
        self._line.flush()
        return len(data)


class Unpacked:
    """A sink for the other end of such a line: the transcript grows in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unpacker = zlib.decompressobj()

    def __call__(self, data: bytes) -> None:
        """Take what has come; what is no compressed data stands in the file as it is."""
        try:
            text = self._unpacker.decompress(data)
        except zlib.error:
            text = data
        with self._path.open("ab") as file:
            file.write(text)


class Transcript:
    """A taker that writes what it gets to an unbuffered file. Methods raise OSError."""

    def __init__(self, file: Written, host: Host, scenarios: Sequence[Scenario], lab: Live) -> None:
        self._file = file
        self._lab = lab
        self._scenarios = scenarios
        lab.say(f"scenarios {len(scenarios)}")
        names = tuple(scenario.name for scenario in scenarios)
        self._write(Opening(host.info, host.features, names, host.probe_failure))

    has_work = False

    def work(self) -> None:
        """Do nothing: there is never any work."""

    def skip(self, index: int, missing: str) -> None:
        """Write down a scenario that does not run because of what is ``missing``."""
        self._lab.skip(self._scenarios[index])
        self._write(Skipped(index, missing))

    def take(self, ran: Finished) -> None:
        """Write down a scenario that ran."""
        data = ran.record.data
        part = _Ran(ran.index, len(data), ran.seconds, ran.record.reason, ran.problems)
        self._write(part, data)

    def end(self) -> None:
        """Do nothing: everything is written already."""

    def close(self, carried: Carried) -> None:
        """Write how the run went."""
        self._write(LastPart(carried))

    def _write(self, part: _Part, data: bytes = b"") -> None:
        left = memoryview(msgspec.json.encode(part) + b"\n" + data)
        while left:
            left = left[self._file.write(left) :]


class Reader:
    """Reads a transcript while it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._rest = b""
        self.headers: tuple[Header, ...] = ()
        """The headers of the scenarios; set by whoever reads the opening."""

    def news(self) -> Iterator[News]:
        """Yield the parts that were completed since the last call.

        Raises BrokenError if the file is not a transcript.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return
        self._read += len(new)
        text, at = self._rest + new, 0
        while found := self._next(text, at):
            news, at = found
            yield news
        self._rest = text[at:]

    def _next(self, text: bytes, at: int) -> tuple[News, int] | None:
        """Return the part that begins at ``at``, and its end; None if it is incomplete."""
        start = text.find(b"\n", at) + 1
        if not start:
            return None
        try:
            part = _DECODER.decode(text[at:start])
        except UNDECODABLE as error:
            raise BrokenError(f"what the machine wrote cannot be read: {error}") from None
        if not isinstance(part, _Ran):
            return part, start
        end = start + part.size_bytes
        if len(text) < end:
            return None
        if part.index not in range(len(self.headers)):
            raise BrokenError(f"what the machine wrote has no scenario {part.index}")
        record = Record(self.headers[part.index], text[start:end], part.reason)
        return Finished(part.index, record, part.seconds, part.problems), end
