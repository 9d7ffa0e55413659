"""Compresses long events of a history: dropping all memory makes an event of 90 MB of text.

We must be able to read what we record, and lines have a limit. The text of an event is repetitive,
so a long one is compressed; a reader says how much text it accepts.
"""

import zlib

import msgspec

from vmm.scenario.reading import MAX_LINE_BYTES

LONG_BYTES = 1 << 20
"""Longer lines are packed."""

_BEGINS = b'{"type":"packed"'
_QUICKLY = 1


class PackingError(ValueError):
    """A packed line that is not valid, or holds more text than is accepted."""


class _Packed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="packed"):
    """A packed line: ``event`` is its text, deflated."""

    event: bytes


def packed(text: bytes) -> bytes:
    """Return the line for an event's text, packed if long. Raises OverflowError if too long."""
    if len(text) <= LONG_BYTES:
        return text
    line = msgspec.json.encode(_Packed(zlib.compress(text, _QUICKLY)))
    if len(line) >= MAX_LINE_BYTES:
        raise OverflowError(f"an event has more than {MAX_LINE_BYTES >> 20} MiB")
    return line


def is_packed(line: bytes) -> bool:
    """Whether a line of a history is a packed event."""
    return line.startswith(_BEGINS)


def unpacked(line: bytes, most_bytes: int) -> bytes:
    """Return the text of a packed line, of at most ``most_bytes``.

    Raises PackingError, and msgspec.DecodeError if the line itself is wrong.
    """
    data = msgspec.json.decode(line, type=_Packed).event
    inflating = zlib.decompressobj()
    try:
        text = inflating.decompress(data, max(most_bytes, 1))
    except zlib.error as error:
        raise PackingError(f"a packed event cannot be read: {error}") from None
    if inflating.unconsumed_tail or len(text) > most_bytes:
        raise PackingError(f"the events of a history have more than {most_bytes} bytes left")
    if not inflating.eof or inflating.unused_data:
        raise PackingError("a packed event is not whole, or more than one")
    return text
