"""Host memory for slots: who owns a mapping, and until when.

A slot reaches its memory through an address, so a mapping must outlive the slots that use
it. Each `Vm` pins the mapping of a slot for as long as the slot exists, and a pinned mapping
refuses to be closed. A view handed out keeps its memory mapped until the view is gone.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from kvm_abi import raw
from kvm_abi.uapi import PAGE_SIZE_BYTES, Advice, MapFlag, Protection
from vmm.kvm.closing import Closing

HUGE_PAGE_BYTES = 2 << 20

_READ_WRITE = Protection.READ | Protection.WRITE
_RESERVED = MapFlag.PRIVATE | MapFlag.ANONYMOUS  # Set aside at once, as hugetlb has to be.
_PRIVATE = _RESERVED | MapFlag.NORESERVE
_SHARED = MapFlag.SHARED | MapFlag.ANONYMOUS | MapFlag.NORESERVE


class HostMapping(Closing):
    """A mapping of this process, unmapped on `close` or at the end of its `with` block.

    Make one with the class methods; all sizes are bytes and multiples of the page size, else they
    raise `ValueError`, and all of them raise `OSError` where the kernel refuses. Offsets are bytes
    from the start.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x2000) as memory:
        ...     memory.write(0x1ffe, b"ab")
        ...     memory.read(0x1ffc, 4)
        b'\\x00\\x00ab'
    """

    def __init__(
        self, address: int, size_bytes: int, fd: int = -1, *, private: bool = False
    ) -> None:
        """Own the mapping at `address`, and the open file `fd` that it maps, `private` or not."""
        self.address = address
        self.size_bytes = size_bytes
        self._fd = fd
        self._sharing = MapFlag.PRIVATE if private else MapFlag.SHARED
        self._view: memoryview | None = raw.owned_memory(address, size_bytes)
        self._elsewhere: HostMapping | None = None

    @classmethod
    def anonymous(cls, size_bytes: int) -> Self:
        """Map private anonymous memory."""
        return cls(raw.map_memory(0, _whole(size_bytes), _READ_WRITE, _PRIVATE), size_bytes)

    @classmethod
    def shared(cls, size_bytes: int) -> Self:
        """Map shared anonymous memory: a forked child sees the same pages."""
        return cls(raw.map_memory(0, _whole(size_bytes), _READ_WRITE, _SHARED), size_bytes)

    @classmethod
    def memfd(cls, size_bytes: int) -> Self:
        """Map a memory file, which stays open as `fd` until the mapping is closed."""
        _whole(size_bytes)
        fd = os.memfd_create("memslot", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
            return cls.of_file(fd, size_bytes)
        finally:
            os.close(fd)

    @classmethod
    def of_file(cls, fd: int, size_bytes: int, *, private: bool = False) -> Self:
        """Map the start of an open file, of which the mapping keeps a descriptor of its own.

        What is written to a `private` mapping stays out of the file.
        """
        sharing = MapFlag.PRIVATE if private else MapFlag.SHARED
        own = os.dup(fd)
        try:
            address = raw.map_memory(0, _whole(size_bytes), _READ_WRITE, sharing, own)
        except BaseException:
            os.close(own)
            raise
        return cls(address, size_bytes, own, private=private)

    @classmethod
    def hugetlb(cls, size_bytes: int) -> Self:
        """Map private reserved huge pages; `size_bytes` is a multiple of theirs.

        Raises ENOMEM where the administrator has set none aside (vm.nr_hugepages).
        """
        flags = _RESERVED | MapFlag.HUGETLB
        whole = _whole(size_bytes, HUGE_PAGE_BYTES)
        return cls(raw.map_memory(0, whole, _READ_WRITE, flags), size_bytes)

    @classmethod
    def transparent_huge(cls, size_bytes: int) -> Self:
        """Map private memory aligned to a huge page, and ask for huge pages.

        Whether huge pages really come is the kernel's choice.
        """
        room = raw.map_memory(0, _whole(size_bytes) + HUGE_PAGE_BYTES, _READ_WRITE, _PRIVATE)
        head = -room % HUGE_PAGE_BYTES
        if head:
            raw.unmap_memory(room, head)
        address = room + head
        raw.unmap_memory(address + size_bytes, HUGE_PAGE_BYTES - head)
        mapping = cls(address, size_bytes)
        try:
            raw.advise_memory(address, size_bytes, Advice.HUGEPAGE)
        except BaseException:
            mapping.close()
            raise
        return mapping

    @classmethod
    def at_zero(cls, size_bytes: int) -> Self:
        """Map private memory at virtual address 0.

        Raises EPERM unless vm.mmap_min_addr is 0 or the process has CAP_SYS_RAWIO, and EEXIST
        where something is mapped there.
        """
        flags = _PRIVATE | MapFlag.FIXED_NOREPLACE
        return cls(raw.map_memory(0, _whole(size_bytes), _READ_WRITE, flags), size_bytes)

    @classmethod
    def reserved(cls, size_bytes: int) -> Self:
        """Reserve addresses that nothing may touch: neither this process nor a guest.

        Reading or writing it through this object ends the process.
        """
        flags = _PRIVATE
        return cls(raw.map_memory(0, _whole(size_bytes), Protection.NONE, flags), size_bytes)

    def __repr__(self) -> str:
        return f"HostMapping({self.address:#x}, {self.size_bytes:#x} bytes)"

    @property
    def closed(self) -> bool:
        """Whether the mapping has been closed."""
        return self._view is None

    @property
    def fd(self) -> int:
        """The memory file that is mapped, or -1."""
        return self._fd

    def close(self) -> None:
        """Unmap the memory, as soon as the last view of it is gone. Closing twice is fine.

        Raises `RuntimeError` while a slot uses the mapping.
        """
        users = ", ".join(f"slot {slot:#x} of VM {vm}" for vm, slot in self._pins())
        if users:
            raise RuntimeError(f"{self!r} is in use by {users}")
        self._view = None
        if self._elsewhere is not None:
            self._elsewhere.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def view(self) -> memoryview:
        """Return a writable view of all bytes. The memory stays mapped while it exists."""
        if self._view is None:
            raise ValueError(f"{self!r} is closed")
        return self._view

    def address_of(self, offset: int) -> int:
        """Return the hva at `offset`; the end is allowed. Raises `ValueError` outside."""
        if self._view is None:
            self.view()
        if not 0 <= offset <= self.size_bytes:
            raise ValueError(f"offset {offset:#x} is outside {self!r}")
        return self.address + offset

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Copy bytes out. Raises `ValueError` when they are not all inside."""
        return bytes(self._part(offset, size_bytes))

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes in. Raises `ValueError` when they do not all fit."""
        self._part(offset, len(data))[:] = data

    def differences(
        self, data: bytes | memoryview, block_bytes: int, offset: int = 0
    ) -> list[tuple[int, int]]:
        """Return where the bytes from `offset` on differ from `data`: (offset, length), ascending.

        `data` is whole blocks of `block_bytes`, in which what is returned is counted; a stretch
        ends where its block ends. Of many only the first ones are returned.
        """
        self._part(offset, len(data))
        return raw.differences(self.address + offset, data, block_bytes)

    def discard(self, offset: int, size_bytes: int) -> None:
        """Drop pages (MADV_DONTNEED): private memory then reads as zero."""
        self._part(offset, size_bytes)
        raw.advise_memory(self.address + offset, size_bytes, Advice.DONTNEED)

    def punch(self, offset: int, size_bytes: int) -> None:
        """Free pages of the file that backs shared memory (MADV_REMOVE): they then read as zero."""
        self._part(offset, size_bytes)
        raw.advise_memory(self.address + offset, size_bytes, Advice.REMOVE)

    def page_out(self, offset: int, size_bytes: int) -> None:
        """Ask for pages to be written to swap or to their file (MADV_PAGEOUT)."""
        self._part(offset, size_bytes)
        raw.advise_memory(self.address + offset, size_bytes, Advice.PAGEOUT)

    def collapse(self, offset: int, size_bytes: int) -> None:
        """Put huge pages in the place of small ones (MADV_COLLAPSE), where that is possible."""
        self._part(offset, size_bytes)
        with suppress(OSError):  # EAGAIN, ENOMEM, EBUSY: the kernel may fail to, at any time.
            raw.advise_memory(self.address + offset, size_bytes, Advice.COLLAPSE)

    def allow_merging(self, offset: int, size_bytes: int) -> None:
        """Let the kernel merge pages that are alike (MADV_MERGEABLE)."""
        self._part(offset, size_bytes)
        raw.advise_memory(self.address + offset, size_bytes, Advice.MERGEABLE)

    def move_away(self, offset: int, size_bytes: int) -> None:
        """Move what pages hold elsewhere (mremap), and reserve their addresses."""
        if self._elsewhere is None:
            self._elsewhere = HostMapping.reserved(self.size_bytes)
        to = self._elsewhere.address_of(offset)
        raw.move_pages(self.address_of(offset), size_bytes // PAGE_SIZE_BYTES, to)
        self.vacate(offset, size_bytes)

    def move_back(self, offset: int, size_bytes: int) -> None:
        """Move back what `move_away` moved."""
        if self._elsewhere is None:
            raise ValueError(f"nothing of {self!r} was moved away")
        self._part(offset, size_bytes)
        here, there = self.address_of(offset), self._elsewhere.address_of(offset)
        raw.move_pages(there, size_bytes // PAGE_SIZE_BYTES, here)

    def spare_huge_pages(self) -> None:
        """Let a touch of one page take that page only (MADV_NOHUGEPAGE), where pages are huge."""
        with suppress(OSError):  # A kernel without huge pages does not know how to spare them.
            raw.advise_memory(self.address, self.size_bytes, Advice.NOHUGEPAGE)

    def vacate(self, offset: int, size_bytes: int) -> None:
        """Unmap pages, and reserve their addresses in the same call: nothing else gets there."""
        self._part(offset, size_bytes)
        flags = _PRIVATE | MapFlag.FIXED
        raw.map_memory(self.address + offset, size_bytes, Protection.NONE, flags)

    def refill(self, offset: int, size_bytes: int) -> None:
        """Map pages anew: those of the memory file at this place, or fresh private ones."""
        self._part(offset, size_bytes)
        address = self.address + offset
        if self._fd >= 0:
            flags = self._sharing | MapFlag.FIXED
            raw.map_memory(address, size_bytes, _READ_WRITE, flags, self._fd, offset)
        else:
            self.freshen(offset, size_bytes)

    def freshen(self, offset: int, size_bytes: int) -> None:
        """Map private anonymous memory in the place of pages, whatever they showed."""
        self._part(offset, size_bytes)
        flags = _PRIVATE | MapFlag.FIXED
        raw.map_memory(self.address + offset, size_bytes, _READ_WRITE, flags)

    def overlay(self, offset: int, size_bytes: int, fd: int, fd_offset: int) -> None:
        """Map pages of a file, shared, in the place of pages. The file stays the caller's."""
        self._part(offset, size_bytes)
        flags = MapFlag.SHARED | MapFlag.FIXED
        raw.map_memory(self.address + offset, size_bytes, _READ_WRITE, flags, fd, fd_offset)

    def resize_file(self, size_bytes: int) -> None:
        """Let the memory file end elsewhere. Touching pages beyond its end ends the process."""
        os.ftruncate(self._fd, size_bytes)

    def cover(self, fd: int, *, private: bool = False) -> None:
        """Map the start of a file over the whole mapping, in place of what was there.

        The file stays the caller's to close. Raises `OSError`, and has changed nothing then: a
        refused MAP_FIXED may leave a hole, so the mapping is tried elsewhere first.
        """
        kind = MapFlag.PRIVATE if private else MapFlag.SHARED
        elsewhere = raw.map_memory(0, self.size_bytes, _READ_WRITE, kind, fd)
        raw.unmap_memory(elsewhere, self.size_bytes)
        raw.map_memory(self.address, self.size_bytes, _READ_WRITE, kind | MapFlag.FIXED, fd)

    def protect(self, offset: int, size_bytes: int, protection: Protection) -> None:
        """Change what pages allow. What they forbid ends the process that does it."""
        self._part(offset, size_bytes)
        raw.protect_memory(self.address + offset, size_bytes, protection)

    def _pins(self) -> list[tuple[int, int]]:
        return sorted(
            (vm, slot)
            for vm, slots in list(PINNED.items())  # Copies: another thread may change them.
            for slot, mapping in list(slots.items())
            if mapping is self
        )

    def _part(self, offset: int, size_bytes: int) -> memoryview:
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise ValueError(f"{size_bytes:#x} bytes at {offset:#x} are outside {self!r}")
        return self.view()[offset : offset + size_bytes]


PINNED: dict[int, Mapping[int, HostMapping]] = {}
"""The mappings that slots use, by the file of their VM and their slot number.

A table is its VM's own: a slot costs nothing more, and only who closes a mapping looks at all.
"""


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An hva inside a mapping, which is pinned for as long as a slot uses it.

    ``offset`` is bytes from the start of the mapping. ``hva`` raises `ValueError` where the mapping
    is closed, or ends before it.

        >>> from vmm import HostAddress, HostMapping
        >>> with HostMapping.anonymous(0x2000) as memory:
        ...     HostAddress(memory, 0x1000).hva - HostAddress(memory, 0).hva
        4096
    """

    mapping: HostMapping
    offset: int

    @property
    def hva(self) -> int:
        """The address as a number. Raises `ValueError` outside the mapping."""
        return self.mapping.address_of(self.offset)


def _whole(size_bytes: int, page_bytes: int = PAGE_SIZE_BYTES) -> int:
    if size_bytes <= 0 or size_bytes % page_bytes:
        raise ValueError(f"{size_bytes:#x} bytes are no whole pages of {page_bytes:#x}")
    return size_bytes
