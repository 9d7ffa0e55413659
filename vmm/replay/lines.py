"""The lines of a trace as a stream, however long it is; terminal colours are left out.

Every line has a number, from 1, and is never longer than a bound: what is beyond is dropped, and
the call on it then counts as cut off.
"""

import gzip
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

from vmm.replay.trace import MAX_TEXT, TraceError
from vmm.scenario.reading import FileError, opened as opened_file

MAX_LINE_BYTES = 1 << 16
_NO_NUMBER = re.compile(rb"[0-9]{40,}")
"""More digits than any number of a call has; Python refuses to read thousands of them."""
_GZIP = b"\x1f\x8b"
_STYLING = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a trace for reading: a file, also one that gzip has packed, or standard input ("-").

    Raises TraceError.
    """
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        with ExitStack() as stack:
            file = stack.enter_context(opened_file(path))
            is_packed = file.peek(2)[:2] == _GZIP
            if is_packed:
                yield cast(IO[bytes], stack.enter_context(gzip.open(file, "rb")))
            else:
                yield file
    except FileError as error:
        raise TraceError(str(error)) from None
    except (OSError, EOFError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise TraceError(f"{path}: {what}") from None


def numbered(stream: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line that is not empty."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES):
        number += 1
        is_whole = line.endswith(b"\n")
        while not is_whole and (rest := stream.readline(MAX_LINE_BYTES)):
            is_whole = rest.endswith(b"\n")
        line = _NO_NUMBER.sub(b"?", line)
        if b"\x1b" in line:
            line = _STYLING.sub(b"", line)
        text = line.decode("ascii", "backslashreplace").rstrip()
        if text:
            yield number, text


def shown(text: str) -> str:
    """Return a line of a trace as it may be printed: escaped, and cut to a length."""
    cut = text[:MAX_TEXT].strip()
    safe = "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)
    return safe + "..." if len(text) > MAX_TEXT else safe
