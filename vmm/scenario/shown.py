"""How text that stands in a file is shown: on one line, without control, and cut to a length.

Names, reasons and even the fields of a file are a stranger's words. A terminal obeys escape
sequences, a report takes a line that begins with `#` for a heading, and text may run from right to
left. So whatever stands in a file passes through here before anybody sees it.
"""

MOST = 200
"""So many characters of one text are shown, as a rule."""

_CUT = "..."


def shown(text: str, most: int = MOST) -> str:
    """Return text with all that is not printable escaped as in Python (a line feed is ``\\n``).

    Printable is what Unicode calls so: no control, no format (such as marks that turn the
    direction of writing), no line or paragraph separator, no surrogate, and no space but ' '.
    At most ``most`` characters are returned; text that is cut ends with three dots.
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
