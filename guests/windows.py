"""The page tables of 64-bit mode: windows, created on demand.

``contract.h`` says what a window is and why its entries never change.
"""

from struct import Struct
from typing import Final

from guests._image import lib

WINDOWS: Final[int] = lib.GUEST_WINDOWS
"""The number of windows."""

WINDOW_STEP_BYTES: Final = 1 << 21
"""Windows begin at multiples of this; each is twice as large."""

_TABLES: Final[int] = lib.GUEST_PAGE_TABLES
_PAGE_BYTES: Final = 0x1000
_WINDOW_BYTES: Final[int] = lib.GUEST_WINDOW_SIZE
_GPA_END: Final = 1 << 52

# Accessed and dirty are set beforehand: nothing but the host writes the tables.
_PRESENT: Final = 0x63
_LARGE: Final = 0x80
_ENTRY: Final = Struct("<Q")


class NoWindowError(ValueError):
    """Every window is in use."""


class Windows:
    """The windows of one VM. Its vCPUs share them."""

    def __init__(self, view: memoryview, slot_gpa: int) -> None:
        """Write the page tables of a guest whose slot is at ``slot_gpa``, without any window.

        ``view`` is the whole slot. No vCPU may have used its page tables before.
        """
        self._view = view
        self._bases: dict[int, int] = {}
        self.cr3: int = slot_gpa + _TABLES
        """The value for the vCPU's CR3."""

        view[_TABLES : _TABLES + lib.GUEST_PAGE_TABLES_SIZE] = bytes(lib.GUEST_PAGE_TABLES_SIZE)
        for level in range(3):
            self._set(level, 0, self.cr3 + (level + 1) * _PAGE_BYTES)
        for page in range(lib.GUEST_SLOT_SIZE // _PAGE_BYTES):
            self._set(3, page, slot_gpa + page * _PAGE_BYTES)

    def address(self, gpa: int) -> int:
        """Return a virtual address of a gpa below 2^52; at least 2 MiB after it are mapped, too.

        Raises NoWindowError.
        """
        number = gpa // WINDOW_STEP_BYTES
        base = self._bases.get(number)
        if base is None:
            base = self._open(number)
        return base + gpa % WINDOW_STEP_BYTES

    def _open(self, number: int) -> int:
        window = len(self._bases) + 1
        if window > WINDOWS:
            raise NoWindowError(f"all {WINDOWS} windows are in use")
        for half in range(2):
            gpa = (number + half) * WINDOW_STEP_BYTES
            if gpa < _GPA_END:
                self._set(2, 2 * window + half, gpa | _LARGE)
        base = window * _WINDOW_BYTES
        self._bases[number] = base
        return base

    def _set(self, level: int, index: int, gpa: int) -> None:
        offset = _TABLES + level * _PAGE_BYTES + index * _ENTRY.size
        _ENTRY.pack_into(self._view, offset, gpa | _PRESENT)
