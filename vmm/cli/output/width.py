"""How wide output for people may be. Imports nothing heavy."""

import os
import textwrap


def width_of(stream: int) -> int | None:
    """Return the columns at which lines to a standard stream are wrapped; None: not at all.

    That is COLUMNS, else the terminal's width. In a file or a pipe, where people grep, lines stay
    whole. COLUMNS together with LINES is what readline exports to the children of a program that
    uses it: that is a terminal's size, and counts only if the stream is a terminal.
    """
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) and (os.isatty(stream) or "LINES" not in os.environ):
        return int(said)
    try:
        return os.get_terminal_size(stream).columns or None
    except OSError:
        return None


def wrapped(line: str, width: int | None) -> str:
    """Return a line, wrapped if it is too wide, with continuations indented."""
    if width is None or len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
