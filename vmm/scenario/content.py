"""What host pages hold: each its own identity, so that a touch proves which page it reached.

Every page is filled with its 32-bit identity, over and over; at ``STUB_OFFSET`` it carries the
code of the *execute* guest, which answers the identity and halts. An identity encodes mapping and
page, and ``identify`` decodes it.
"""

import re
from functools import lru_cache
from itertools import groupby
from struct import unpack

from vmm.scenario.operations import PAGE_SIZE_BYTES

STUB_OFFSET = 0x800
"""The offset of the code in a page."""
MMIO_FILL = 0xFF
"""The byte that the executor answers to every MMIO read."""

_MIX = 0x9E3779B1  # odd, so that multiplying is a bijection on 32 bits
_UNMIX = pow(_MIX, -1, 1 << 32)
_MASK = (1 << 32) - 1
_NOT_ZEROS = re.compile(rb"[^\0]+")
_PAGE_BITS = 20
_MAPPING_BITS = 8
_ELEMENTS = {1: "B", 2: "H", 4: "I"}

# The same bytes run in real mode and in 64-bit mode; each has an identity of its own.
_STUB_HEAD = bytes.fromhex("b80000eb08 b8")
_STUB_MIDDLE = bytes.fromhex("e7e1f4 66b8")
_STUB_TAIL = bytes.fromhex("66e7e1f4")
_LONG_AT = len(_STUB_HEAD)
_REAL_AT = _LONG_AT + 4 + len(_STUB_MIDDLE)
STUB_LENGTH = _REAL_AT + 4 + len(_STUB_TAIL)


def identity(mapping: int, page: int) -> int:
    """Return the 32-bit identity of a page (below 2^24) of the mapping with this index (to 254)."""
    far, near = divmod(page, 1 << _PAGE_BITS)
    return (((far << _MAPPING_BITS) + mapping + 1 << _PAGE_BITS | near) * _MIX) & _MASK


def identify(word: int) -> tuple[int, int]:
    """Return the mapping index (-1 or more) and page whose identity a word would be."""
    number = (word * _UNMIX) & _MASK
    far, index = divmod(number >> _PAGE_BITS, 1 << _MAPPING_BITS)
    return index - 1, far << _PAGE_BITS | number & ((1 << _PAGE_BITS) - 1)


def stub(page_identity: int) -> bytes:
    """Return the *execute* guest's code for a page; guests/execute.S is its source."""
    word = page_identity.to_bytes(4, "little")
    return _STUB_HEAD + word + _STUB_MIDDLE + word + _STUB_TAIL


def stub_identity(code: bytes) -> int | None:
    """Return the identity that ``stub`` code answers with; None for any other code."""
    page_identity = int.from_bytes(code[_REAL_AT : _REAL_AT + 4], "little")
    return page_identity if code == stub(page_identity) else None


@lru_cache(maxsize=4096)
def page_bytes(mapping: int, page: int) -> bytes:
    """Return the 4096 bytes that a freshly tagged page holds."""
    tag = identity(mapping, page)
    word = tag.to_bytes(4, "little")
    head = word * (STUB_OFFSET // 4)
    code = stub(tag)
    code += bytes(-len(code) % 4)
    return head + code + word * ((PAGE_SIZE_BYTES - len(head) - len(code)) // 4)


def tagged_bytes(mapping: int, offset: int, length: int) -> bytes:
    """Return ``length`` bytes of a freshly tagged page; ``offset`` is that into the mapping."""
    page, start = divmod(offset, PAGE_SIZE_BYTES)
    end = start + length
    if start < STUB_OFFSET + STUB_LENGTH and end > STUB_OFFSET:
        return page_bytes(mapping, page)[start:end]
    at = start % 4
    return (_word(mapping, page) * ((at + length + 3) // 4))[at : at + length]


@lru_cache(maxsize=1 << 16)
def _word(mapping: int, page: int) -> bytes:
    return identity(mapping, page).to_bytes(4, "little")


def changed_runs(old: bytes, new: bytes) -> list[tuple[int, bytes]]:
    """Return the maximal runs of bytes of ``new`` that differ from ``old``, with their offsets.

    Both have the same length.
    """
    if old == new:
        return []
    difference = int.from_bytes(old, "little") ^ int.from_bytes(new, "little")
    if 0 not in difference.to_bytes(len(new), "little"):
        return [(0, new)]
    first = ((difference & -difference).bit_length() - 1) // 8
    size_bytes = (difference.bit_length() + 7) // 8 - first
    marks = (difference >> 8 * first).to_bytes(size_bytes, "little")
    spans = [(first + run.start(), first + run.end()) for run in _NOT_ZEROS.finditer(marks)]
    return [(start, new[start:end]) for start, end in spans]


def run_lengths(data: bytes, width: int) -> tuple[tuple[int, int], ...]:
    """Return the runs of equal elements as (value, count); ``width`` is 1, 2 or 4 bytes."""
    elements = unpack(f"<{len(data) // width}{_ELEMENTS[width]}", data)
    return tuple((value, sum(1 for _ in run)) for value, run in groupby(elements))
