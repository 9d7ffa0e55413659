"""The guests as numbers and bytes.  ``contract.h`` says what they mean.

Offsets are in bytes from the start of the guest's slot.
"""

from enum import IntEnum
from typing import Final

from guests._image import ffi, lib

_LABELS = lib.guest_labels

TOUCH_ENTRY: Final[int] = lib.GUEST_TOUCHES
SWEEP_ENTRY: Final[int] = _LABELS.sweep_entry
SWEEP_SKIP: Final[int] = _LABELS.sweep_skip
LONG_SWEEP_END: Final[int] = _LABELS.long_sweep_end

END_PORT: Final[int] = lib.GUEST_PORT_END
"""touch and sweep write one byte to this port at the end of the mailbox."""

EXECUTED_PORT: Final[int] = lib.GUEST_PORT_EXECUTED
"""A page's stub writes the page's identity, four bytes, to this port."""


class Access(IntEnum):
    """What touch and sweep do: a read or a write, of this many bytes."""

    READ_1 = lib.GUEST_ACCESS_READ_1
    READ_2 = lib.GUEST_ACCESS_READ_2
    READ_4 = lib.GUEST_ACCESS_READ_4
    WRITE_1 = lib.GUEST_ACCESS_WRITE_1
    WRITE_2 = lib.GUEST_ACCESS_WRITE_2
    WRITE_4 = lib.GUEST_ACCESS_WRITE_4


ACCESSES: Final = {
    (access.name.rpartition("_")[0].lower(), int(access.name.rpartition("_")[2])): access
    for access in Access
}
"""Each access by direction, "read" or "write", and width in bytes."""

WIDTHS: Final = tuple(width for _, width in sorted(ACCESSES, key=lambda key: ACCESSES[key]))
"""The width in bytes of each access."""

WRITES: Final = frozenset(access for (what, _), access in ACCESSES.items() if what == "write")

SWEEPS: Final[tuple[int, ...]] = tuple(_LABELS.sweeps)
"""The offset of the sweep code for each access."""

LONG_SWEEPS: Final[tuple[int, ...]] = tuple(_LABELS.long_sweeps)
"""The entry point of a sweep in 64-bit mode for each access."""


def code() -> bytes:
    """Return the image: the bytes at the start of the guest's slot."""
    return bytes(ffi.buffer(lib.guest_image, _LABELS.image_size))
