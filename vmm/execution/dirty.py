"""Bitmaps of the dirty log: what is asked to be cleared, and what a kernel wrote into one."""

import re

from vmm.scenario.history import DirtyPages
from vmm.scenario.operations import ClearDirtyLog

UNWRITTEN = bytes.fromhex("a75d1ec3926b84f1")
"""A word of a bitmap that the kernel has not written: no log of a scenario looks like this."""

_ANY_BIT = re.compile(rb"[^\0]")
_BITS_OF = [tuple(bit for bit in range(8) if byte & 1 << bit) for byte in range(256)]


def bitmap_of(op: ClearDirtyLog, size_bytes: int) -> bytes:
    """Return the bits of the pages to clear, from the first page of the operation on."""
    if op.pages == "all":
        return b"\xff" * size_bytes
    bits = bytearray(size_bytes)
    for page in op.pages:
        byte, bit = divmod(page - op.first_page, 8)
        if byte < size_bytes:
            bits[byte] |= 1 << bit
    return bytes(bits)


def dirty_pages(log: bytes) -> DirtyPages:
    """Return what a bitmap says that was full of ``UNWRITTEN``: it ends with the last word written.

    A word before that one which the kernel has left alone says what its reader would take from it.
    """
    words = len(log) // len(UNWRITTEN)
    while words and log[(words - 1) * 8 : words * 8] == UNWRITTEN:
        words -= 1
    return DirtyPages(_bits(log[: words * 8]), words=words)


def _bits(bitmap: bytes) -> tuple[int, ...]:
    """Return the numbers of the bits that are set, ascending, in a time linear in the bitmap."""
    return tuple(
        byte.start() * 8 + bit
        for byte in _ANY_BIT.finditer(bitmap)
        for bit in _BITS_OF[bitmap[byte.start()]]
    )
