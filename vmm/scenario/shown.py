"""Makes text from a file safe to show: one line, no control characters, limited length.

Names, reasons and even the fields of a file are a stranger's words. A terminal obeys escape
sequences, a report takes a line that begins with `#` for a heading, and text may run from right to
left. So all text from a file passes through here before anybody sees it.
"""

MOST = 200
"""The default limit, in characters."""

_CUT = "..."


def shown(text: str, most: int = MOST) -> str:
    """Return text with unprintable characters escaped as in Python (a line feed is ``\\n``).

    Unprintable are control and format characters (such as marks that change the direction of
    writing), line and paragraph separators, surrogates, and all spaces but ' '. At most ``most``
    characters are returned; text that is cut ends with three dots.
    """
    head = text[: most + 1]
    if not head.isprintable():
        head = "".join(map(_escaped, head))
    return head if len(head) <= most else head[: most - len(_CUT)] + _CUT


def is_plain(text: str, most: int) -> bool:
    """Whether a text is shown as it is: 1 to ``most`` printable characters."""
    return 0 < len(text) <= most and text.isprintable()


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
