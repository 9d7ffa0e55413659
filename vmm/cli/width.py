"""How wide what people read may be. Imports nothing heavy."""

import os
import textwrap


def width_of(stream: int) -> int | None:
    """Return where lines to a standard stream are wrapped, in columns; None: nowhere.

    COLUMNS says so, else a terminal. In a file or a pipe, where people grep, lines stay whole.
    COLUMNS and LINES together are what readline leaves to the children of a program that uses it:
    that is the size of a terminal, and counts where there is one.
    """
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) and (os.isatty(stream) or "LINES" not in os.environ):
        return int(said)
    try:
        return os.get_terminal_size(stream).columns or None
    except OSError:
        return None


def wrapped(line: str, width: int | None) -> str:
    """Return a line, broken where it is too wide; what continues it is indented."""
    if width is None or len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
