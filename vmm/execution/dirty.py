"""Bitmaps of the dirty log: those that ask for clearing, and those that a kernel wrote."""

from vmm.scenario.history import DirtyPages
from vmm.scenario.operations import ClearDirtyLog

UNWRITTEN = bytes.fromhex("a75d1ec3926b84f1")
"""Marks a word of a bitmap that the kernel has not written: no scenario's log looks like this."""


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
    """Return the pages in a bitmap that was filled with ``UNWRITTEN`` before the kernel wrote it.

    It ends with the last word written. Unwritten words before that count as any VMM would read
    them.
    """
    words = _written_words(log)
    return DirtyPages(_bits(log[: words * 8]), words=words)


def _written_words(log: bytes) -> int:
    """Return how many words there are up to the last one written, by bisection."""
    least, most = 0, len(log) // 8
    while least < most:
        middle = (least + most) // 2
        if log[middle * 8 : most * 8] == UNWRITTEN * (most - middle):
            most = middle
        else:
            least = middle + 1
    return most


def _bits(bitmap: bytes) -> tuple[int, ...]:
    """Return the numbers of the set bits, ascending, in time linear in the bitmap."""
    bits: list[int] = []
    for number, word in enumerate(memoryview(bitmap).cast("Q")):
        while word:
            lowest = word & -word
            bits.append(number * 64 + lowest.bit_length() - 1)
            word ^= lowest
    return tuple(bits)
