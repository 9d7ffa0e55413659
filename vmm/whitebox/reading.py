"""What the readers of trees and of arrays share: reading memory, and decoding a slot."""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

from vmm.scenario.kernelslots import KernelSlot
from vmm.whitebox.layout import ArrayLayout, TreeLayout

Read = Callable[[int, int], bytes]

MOST_SLOTS = 256
"""An address space with more is not read: each operation would copy all of them."""

U64, U32, S32 = Struct("<Q"), Struct("<I"), Struct("<i")
S16, U16 = Struct("<h"), Struct("<H")
_PAGE = 4096


class TooManyError(Exception):
    """There are more slots than MOST_SLOTS."""


@dataclass(frozen=True, slots=True)
class Look:
    """What to look for after an operation: the slot that it names.

    ``before`` is the generation that was in use before it.
    """

    as_id: int
    before: int
    slot_id: int


class Pages:
    """Reads each page of memory once: slots are close together, and system calls cost most."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._known: dict[int, bytes] = {}

    def read(self, address: int, size: int) -> bytes:
        """Return bytes. Raises OSError."""
        first = address // _PAGE
        if (address + size - 1) // _PAGE != first:
            return self._read(address, size)
        page = self._known.get(first)
        if page is None:
            try:
                page = self._known[first] = self._read(first * _PAGE, _PAGE)
            except OSError:
                return self._read(address, size)
        at = address % _PAGE
        return page[at : at + size]


def slot_from(data: bytes, layout: TreeLayout | ArrayLayout, at: int = 0) -> KernelSlot:
    """Return the slot whose bytes begin at offset ``at``."""
    return KernelSlot(
        S16.unpack_from(data, at + layout.slot_id)[0],
        U16.unpack_from(data, at + layout.slot_as_id)[0],
        U64.unpack_from(data, at + layout.slot_base_gfn)[0],
        U64.unpack_from(data, at + layout.slot_npages)[0],
        U64.unpack_from(data, at + layout.slot_userspace_addr)[0],
        U32.unpack_from(data, at + layout.slot_flags)[0],
    )
