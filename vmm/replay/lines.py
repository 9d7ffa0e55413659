"""Reads the lines of a trace as a stream of any length, without terminal colours.

Every line has a number, from 1. A line longer than a limit is cut, and the call on it counts as cut
off.
"""

import bz2
import gzip
import lzma
import re
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from vmm.replay.trace import MAX_TEXT, TraceError
from vmm.scenario.endings import HOST_SHORT
from vmm.scenario.reading import FileError, opened as opened_file

MAX_LINE_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 20
_NO_NUMBER = re.compile(rb"[0-9]{40,}")
"""More digits than any number in a call has; Python refuses to parse thousands of digits."""
_STYLING = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")


def _unpacked(begun: bytes, file: IO[bytes]) -> IO[bytes]:
    """Return a file, unpacked if its first bytes say that it is packed."""
    if begun.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(file))
    if begun.startswith(b"BZh"):
        return cast(IO[bytes], bz2.open(file))
    if begun.startswith(b"\xfd7zXZ\x00"):
        return cast(IO[bytes], lzma.open(file))
    return file


STDIN = Path("-")
"""The path that means standard input."""


def name_of(path: Path) -> str:
    """Return what messages call a trace."""
    return "standard input" if path == STDIN else str(path)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a trace for reading: a file, or standard input ("-").

    It is unpacked if gzip, bzip2 or xz have packed it. Raises TraceError.
    """
    is_input = path == STDIN
    try:
        with nullcontext(sys.stdin.buffer) if is_input else opened_file(path) as file:
            begun = cast(BufferedReader, file).peek(6)
            yield _unpacked(begun, file)
    except FileError as error:
        raise TraceError(str(error)) from None
    except (OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno in HOST_SHORT:
            raise
        what = getattr(error, "strerror", None) or str(error)
        raise TraceError(f"{name_of(path)}: {what}") from None


class Numbered:
    """Yields the number and text of each line that is not empty, except those left out.

    ``number`` is that of the last line so far, ``damaged`` that of the first one that has bytes of
    no text (0: none). ``cut`` says where a packed file ends too early ("":
    it does not); everything before has been read. A damaged file raises OSError.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = cast(BufferedReader, stream)
        self._left_out: re.Pattern[bytes] | None = None
        self._text, self._at = b"", 0
        self.number = 0
        self.damaged = 0
        self.cut = ""

    def leave_out(self, pattern: re.Pattern[bytes]) -> None:
        """From now on leave out many lines at a time.

        ``pattern`` matches a line that is kept and those after it that are left out, without the
        end of the last one.
        """
        self._left_out = pattern

    def __iter__(self) -> Iterator[tuple[int, str]]:
        try:
            for line in self._lines():
                text = _plain(line)
                if not self.damaged and (b"\0" in line or not (line.isascii() or _is_utf8(line))):
                    self.damaged = self.number
                if text:
                    yield self.number, text
        except EOFError:
            self.cut = f"the packed file is cut off after line {self.number}"
        except (zlib.error, lzma.LZMAError) as error:
            raise OSError(str(error)) from None

    def _lines(self) -> Iterator[bytes]:
        """Yield each line that is kept, without its end, and cut to MAX_LINE_BYTES."""
        while self._more():
            end = self._text.find(b"\n", self._at)
            while end < 0 and len(self._text) - self._at < MAX_LINE_BYTES and self._read():
                end = self._text.find(b"\n", self._at)
            line = self._text[self._at : end if end >= 0 else None]
            self.number += 1
            yield line.removeprefix(BOM_UTF8)[:MAX_LINE_BYTES]
            if end < 0:
                self._pass_long()
            elif self._left_out is not None:
                self._at = self._passed(self._left_out, end)
            else:
                self._at = end
            self._at += 1

    def _more(self) -> bool:
        return self._at < len(self._text) or self._read()

    def _read(self) -> bool:
        """Read a block after the text that is left; return whether there was one."""
        block = self._stream.read1(_BLOCK_BYTES)
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)

    def _pass_long(self) -> None:
        """Pass over the rest of a line that is too long."""
        end = -1
        while end < 0:
            self._at = len(self._text)
            if not self._read():
                return
            end = self._text.find(b"\n")
        self._at = end

    def _passed(self, pattern: re.Pattern[bytes], end: int) -> int:
        """Return where the last line ends of those that are left out after the one just read."""
        found = pattern.match(self._text, self._at)
        if found is None:
            return end
        self.number += self._text.count(b"\n", self._at, found.end())
        return found.end()


def _is_utf8(line: bytes) -> bool:
    """Whether bytes are text; the last character may be cut off."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def _plain(line: bytes) -> str:
    """Return a line as text: without colours, without numbers too long for Python, escaped."""
    line = _NO_NUMBER.sub(b"?", line)
    if b"\0" in line:  # A file system has lost what stood there.
        line = line.replace(b"\0", b"")
    if b"\x1b" in line:
        line = _STYLING.sub(b"", line)
    if b"&lt;" in line or b"&gt;" in line:  # A web page was saved.
        line = line.replace(b"&lt;", b"<").replace(b"&gt;", b">").replace(b"&amp;", b"&")
    return line.decode("ascii", "backslashreplace").rstrip()


def shown(text: str) -> str:
    """Return a line of a trace in printable form: escaped, and cut to a length."""
    cut = text[:MAX_TEXT].strip()
    if not cut.isprintable():
        cut = "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)
    return cut + "..." if len(text) > MAX_TEXT else cut
