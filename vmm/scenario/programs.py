"""Code that a host can write to a page for a vCPU to start at, and page tables for it to use.

A program is a few bytes, so that the model knows one when it finds it in memory. Each ends by
writing EAX to the port of the *execute* guest.
"""

from collections.abc import Iterator, Mapping

from vmm.scenario.operations import PAGE_SIZE_BYTES, HostWrite, Place

LOAD = bytes.fromhex("8b07 e7e1 f4")
"""mov (%rdi), %eax: the guest reads a word."""

STORE = bytes.fromhex("890f 8b07 e7e1 f4")
"""mov %ecx, (%rdi), and then the same: it writes a word, and reads it."""

LONGEST = max(len(LOAD), len(STORE))

PRESENT, WRITABLE, LARGE = 1 << 0, 1 << 1, 1 << 7
ACCESSED, DIRTY = 1 << 5, 1 << 6
"""Bits of an entry of a page table; the processor sets the last two."""

ADDRESS_BITS = ((1 << 52) - 1) & -PAGE_SIZE_BYTES
ENTRY_BYTES = 8
LAST_ADDRESS = (1 << 47) - PAGE_SIZE_BYTES
"""Addresses end here, a page before those that are not canonical."""

LEVELS = 4
"""Levels of page tables; the index of each has 9 bits of the address."""

_INDEX_BITS = 9
_PAGE_BITS = 12


def shift_of(level: int) -> int:
    """Return where in an address the index of a level begins; level 0 is that of pages."""
    return _PAGE_BITS + _INDEX_BITS * level


def index_of(address: int, level: int) -> int:
    """Return the index of an address in the table of a level."""
    return address >> shift_of(level) & (1 << _INDEX_BITS) - 1


def writes(place: Place, data: bytes) -> Iterator[HostWrite]:
    """Yield what writes bytes to host memory: whole words, the last one filled up with zeros."""
    for at in range(0, len(data), 4):
        value = int.from_bytes(data[at : at + 4], "little")
        yield HostWrite(Place(place.mapping, place.offset + at), value)


def entries(table: Place, values: Mapping[int, int]) -> Iterator[HostWrite]:
    """Yield what writes entries, by their index, to a page of zeros."""
    for index, value in values.items():
        for at, word in ((0, value & 0xFFFF_FFFF), (4, value >> 32)):
            if word:
                yield HostWrite(Place(table.mapping, table.offset + index * ENTRY_BYTES + at), word)
