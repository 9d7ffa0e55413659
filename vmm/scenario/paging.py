"""The kinds of page tables that a guest may use: how many levels, and entries of how many bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PagingKind = Literal["long", "pae", "two-level"]


@dataclass(frozen=True, slots=True)
class Paging:
    """Page tables as a processor walks them.

    ``shifts`` has the lowest bit of the index in an address, and ``index_bits`` how many it has,
    for each level from that of pages on. ``address_bits`` are those of a page or table in an entry.
    ``alignment`` is that of the highest table. ``has_pointers``: the entries of the highest level
    have nothing but an address, and bits that nobody sets.
    """

    shifts: tuple[int, ...]
    index_bits: tuple[int, ...]
    entry_bytes: int
    address_bits: int
    alignment: int = 0x1000
    has_pointers: bool = False

    def index_of(self, address: int, level: int) -> int:
        """Return the index of an address in the table of a level."""
        return address >> self.shifts[level] & (1 << self.index_bits[level]) - 1

    def large_page(self, entry: int) -> int | None:
        """Return the gpa of a large page; None if reserved bits of the entry are set."""
        if self.entry_bytes == _FEW_BYTES:  # PSE-36: bits 32 to 39 are in bits 13 to 20.
            above = (entry >> 13 & 0xFF) << 32
            return None if entry & _PSE_RESERVED else above | entry & _PSE_ADDRESS
        gpa = entry & self.address_bits
        return None if gpa & (1 << self.shifts[1]) - 1 else gpa


_FEW_BYTES = 4
_PSE_ADDRESS, _PSE_RESERVED = 0xFFC0_0000, 1 << 12 | 1 << 21
_WIDE = ((1 << 52) - 1) & ~0xFFF

KINDS: Mapping[PagingKind, Paging] = {
    "long": Paging((12, 21, 30, 39), (9, 9, 9, 9), 8, _WIDE),
    "pae": Paging((12, 21, 30), (9, 9, 2), 8, _WIDE, 0x20, has_pointers=True),
    "two-level": Paging((12, 22), (10, 10), _FEW_BYTES, 0xFFFF_F000),
}
"""64-bit mode; 32-bit mode with PAE, and with PSE and without PAE."""
