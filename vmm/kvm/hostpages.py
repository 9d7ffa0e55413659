"""`HostPages`: reads, writes and changes the pages of a mapping."""

import os
from contextlib import suppress

from kvm_abi import mman
from kvm_abi.shortcut import PagesFields
from kvm_abi.uapi import PAGE_SIZE_BYTES, Advice, MapFlag, Protection
from vmm.kvm.closing import Closing

READ_WRITE = Protection.READ | Protection.WRITE
PRIVATE = MapFlag.PRIVATE | MapFlag.ANONYMOUS | MapFlag.NORESERVE

_SMALL_COPY_BYTES = 64
"""What is written to the lowest page at once.

glibc may copy more from the end to the start, in a loop that goes on where no address is lower: it
depends on the places of both, and kills the process.
"""


class HostPages(PagesFields, Closing):
    """The pages of a mapping; `vmm.HostMapping` creates and closes mappings."""

    def __init__(
        self, address: int, size_bytes: int, fd: int = -1, *, private: bool = False
    ) -> None:
        """Own the mapping at `address`, and the open file `fd` that it maps, `private` or not."""
        self.address = address
        self.size_bytes = size_bytes
        self._fd = fd
        self._sharing = MapFlag.PRIVATE if private else MapFlag.SHARED
        self._view: memoryview | None = mman.owned_memory(address, size_bytes)
        self._elsewhere: HostPages | None = None

    def close(self) -> None:
        """Unmap the memory, as soon as the last view of it is gone. Closing twice is fine.

        Raises nothing.

        >>> from vmm import HostMapping
        >>> HostMapping.anonymous(0x1000).close()
        """
        self._view = None
        if self._elsewhere is not None:
            self._elsewhere.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def view(self) -> memoryview:
        r"""Return a writable view of all bytes. The memory stays mapped while it exists.

        Raises `ValueError` when the mapping is closed.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     memory.view()[5] = 7
        ...     memory.read(5, 1)
        b'\x07'
        """
        if self._view is None:
            raise ValueError(f"{self!r} is closed")
        return self._view

    def address_of(self, offset: int) -> int:
        """Return the hva at `offset`; the end is allowed. Raises `ValueError` outside.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     memory.address_of(0x1000) - memory.address
        4096
        """
        if self._view is None:
            self.view()
        if not 0 <= offset <= self.size_bytes:
            raise ValueError(f"offset {offset:#x} is outside {self!r}")
        return self.address + offset

    def read(self, offset: int, size_bytes: int) -> bytes:
        r"""Copy bytes out. Raises `ValueError` when they are not all inside.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     memory.read(0xfff, 1)
        b'\x00'
        """
        return bytes(self._part(offset, size_bytes))

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes in. Raises `ValueError` when they do not all fit.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     try:
        ...         memory.write(0xfff, b"ab")
        ...     except ValueError as error:
        ...         print(str(error).partition(" are")[0])
        0x2 bytes at 0xfff
        """
        part = self._part(offset, len(data))
        start = min(len(part), PAGE_SIZE_BYTES - self.address - offset)
        if start <= 0:
            part[:] = data
            return
        source = memoryview(data)
        for at in range(0, start, _SMALL_COPY_BYTES):
            piece = slice(at, min(at + _SMALL_COPY_BYTES, start))
            part[piece] = source[piece]
        part[start:] = source[start:]

    def differences(
        self, data: bytes | memoryview, block_bytes: int, offset: int = 0
    ) -> list[tuple[int, int]]:
        """Return where the bytes from `offset` on differ from `data`: (offset, length), ascending.

        `data` consists of whole blocks of `block_bytes`; no stretch crosses the end of a block.
        Returned offsets count from `offset`. If there are very many, only the first are returned.
        Raises `ValueError` if the data reaches beyond the mapping.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     memory.write(9, b"xyz")
        ...     memory.differences(bytes(0x1000), block_bytes=0x1000)
        [(9, 3)]
        """
        self._part(offset, len(data))
        return mman.differences(self.address + offset, data, block_bytes)

    def discard(self, offset: int, size_bytes: int) -> None:
        r"""Drop pages (MADV_DONTNEED): private memory then reads as zero.

        Raises `ValueError` outside, and `OSError`.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     memory.write(0, b"x")
        ...     memory.discard(0, 0x1000)
        ...     memory.read(0, 1)
        b'\x00'
        """
        self._part(offset, size_bytes)
        mman.advise_memory(self.address + offset, size_bytes, Advice.DONTNEED)

    def punch(self, offset: int, size_bytes: int) -> None:
        r"""Free pages of the file behind shared memory (MADV_REMOVE): they then read as zero.

        Raises `ValueError` outside, and `OSError`.

        >>> from vmm import HostMapping
        >>> with HostMapping.memfd(0x1000) as memory:
        ...     memory.write(0, b"x")
        ...     memory.punch(0, 0x1000)
        ...     memory.read(0, 1)
        b'\x00'
        """
        self._part(offset, size_bytes)
        mman.advise_memory(self.address + offset, size_bytes, Advice.REMOVE)

    def page_out(self, offset: int, size_bytes: int) -> None:
        """Ask the kernel to write pages to swap or to their file (MADV_PAGEOUT).

        Raises `ValueError` outside, and `OSError`.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     memory.write(0, b"x")
        ...     memory.page_out(0, 0x1000)
        ...     memory.read(0, 1)
        b'x'
        """
        self._part(offset, size_bytes)
        mman.advise_memory(self.address + offset, size_bytes, Advice.PAGEOUT)

    def collapse(self, offset: int, size_bytes: int) -> None:
        """Replace small pages by huge ones (MADV_COLLAPSE), if possible.

        Raises `ValueError` outside, but nothing if the kernel cannot do it.

        >>> from vmm import HostMapping
        >>> with HostMapping.transparent_huge(2 << 20) as memory:
        ...     memory.write(0, b"x")
        ...     memory.collapse(0, 2 << 20)
        ...     memory.read(0, 1)
        b'x'
        """
        self._part(offset, size_bytes)
        with suppress(OSError):  # EAGAIN, ENOMEM, EBUSY: the kernel may fail at any time.
            mman.advise_memory(self.address + offset, size_bytes, Advice.COLLAPSE)

    def allow_merging(self, offset: int, size_bytes: int) -> None:
        """Let the kernel merge equal pages (MADV_MERGEABLE).

        Raises `ValueError` outside, and `OSError`, EINVAL on a kernel without KSM.

        >>> import errno
        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     try:
        ...         memory.allow_merging(0, 0x1000)
        ...     except OSError as error:
        ...         assert error.errno == errno.EINVAL
        """
        self._part(offset, size_bytes)
        mman.advise_memory(self.address + offset, size_bytes, Advice.MERGEABLE)

    def move_away(self, offset: int, size_bytes: int) -> None:
        """Move pages elsewhere (mremap), and reserve their addresses.

        Raises `ValueError` outside, and `OSError`.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     memory.write(0, b"x")
        ...     memory.move_away(0, 0x1000)  # A guest that touches it now finds no memory.
        ...     memory.move_back(0, 0x1000)
        ...     memory.read(0, 1)
        b'x'
        """
        if self._elsewhere is None:
            room = mman.map_memory(0, self.size_bytes, Protection.NONE, PRIVATE)
            self._elsewhere = HostPages(room, self.size_bytes)
        to = self._elsewhere.address_of(offset)
        mman.move_pages(self.address_of(offset), size_bytes // PAGE_SIZE_BYTES, to)
        self.vacate(offset, size_bytes)

    def move_back(self, offset: int, size_bytes: int) -> None:
        r"""Move back what `move_away` moved.

        Raises `ValueError` outside, and if nothing was moved, and `OSError`.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     memory.move_away(0, 0x1000)
        ...     memory.move_back(0, 0x1000)
        ...     memory.read(0, 1)
        b'\x00'
        """
        if self._elsewhere is None:
            raise ValueError(f"nothing of {self!r} was moved away")
        self._part(offset, size_bytes)
        here, there = self.address_of(offset), self._elsewhere.address_of(offset)
        mman.move_pages(there, size_bytes // PAGE_SIZE_BYTES, here)

    def spare_huge_pages(self) -> None:
        """Let a touch of one page allocate only that page (MADV_NOHUGEPAGE).

        Raises nothing.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(4 << 20) as memory:
        ...     memory.spare_huge_pages()
        """
        with suppress(OSError):  # A kernel without huge pages does not know this advice.
            mman.advise_memory(self.address, self.size_bytes, Advice.NOHUGEPAGE)

    def vacate(self, offset: int, size_bytes: int) -> None:
        r"""Unmap pages, and reserve their addresses in the same call, so that nothing takes them.

        Raises `ValueError` outside, and `OSError`.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x2000) as memory:
        ...     memory.vacate(0x1000, 0x1000)
        ...     memory.read(0, 1)
        b'\x00'
        """
        self._part(offset, size_bytes)
        flags = PRIVATE | MapFlag.FIXED
        mman.map_memory(self.address + offset, size_bytes, Protection.NONE, flags)

    def refill(self, offset: int, size_bytes: int) -> None:
        """Map pages again: those of the file at this offset, or fresh private ones.

        Raises `ValueError` outside, and `OSError`.

        >>> from vmm import HostMapping
        >>> with HostMapping.memfd(0x1000) as memory:
        ...     memory.write(0, b"x")
        ...     memory.vacate(0, 0x1000)
        ...     memory.refill(0, 0x1000)
        ...     memory.read(0, 1)
        b'x'
        """
        self._part(offset, size_bytes)
        address = self.address + offset
        if self._fd >= 0:
            flags = self._sharing | MapFlag.FIXED
            mman.map_memory(address, size_bytes, READ_WRITE, flags, self._fd, offset)
        else:
            self.freshen(offset, size_bytes)

    def freshen(self, offset: int, size_bytes: int) -> None:
        r"""Replace pages by private anonymous memory.

        Raises `ValueError` outside, and `OSError`.

        >>> import os
        >>> from vmm import HostMapping
        >>> with HostMapping.memfd(0x1000) as memory:
        ...     memory.write(0, b"x")
        ...     memory.freshen(0, 0x1000)
        ...     memory.read(0, 1), os.pread(memory.fd, 1, 0)
        (b'\x00', b'x')
        """
        self._part(offset, size_bytes)
        flags = PRIVATE | MapFlag.FIXED
        mman.map_memory(self.address + offset, size_bytes, READ_WRITE, flags)

    def overlay(self, offset: int, size_bytes: int, fd: int, fd_offset: int) -> None:
        """Replace pages by shared ones of a file, which stays the caller's to close.

        Raises `ValueError` outside, and `OSError`.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x2000) as memory, HostMapping.memfd(0x1000) as file:
        ...     file.write(0, b"x")
        ...     memory.overlay(0x1000, 0x1000, file.fd, 0)
        ...     memory.read(0x1000, 1)
        b'x'
        """
        self._part(offset, size_bytes)
        flags = MapFlag.SHARED | MapFlag.FIXED
        mman.map_memory(self.address + offset, size_bytes, READ_WRITE, flags, fd, fd_offset)

    def resize_file(self, size_bytes: int) -> None:
        r"""Resize the mapped file. Touching pages beyond its end kills the process.

        Raises `OSError`, EBADF if there is no file.

        >>> from vmm import HostMapping
        >>> with HostMapping.memfd(0x2000) as memory:
        ...     memory.resize_file(0x1000)
        ...     memory.read(0, 1)
        b'\x00'
        """
        os.ftruncate(self._fd, size_bytes)

    def cover(self, fd: int, *, private: bool = False) -> None:
        """Replace the whole mapping by the start of a file.

        The file stays the caller's to close. Raises `OSError`, and then nothing has changed: since
        a refused MAP_FIXED may leave a hole, it first tries to map the file elsewhere.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory, HostMapping.memfd(0x1000) as file:
        ...     file.write(0, b"x")
        ...     memory.cover(file.fd)
        ...     memory.read(0, 1)
        b'x'
        """
        kind = MapFlag.PRIVATE if private else MapFlag.SHARED
        elsewhere = mman.map_memory(0, self.size_bytes, READ_WRITE, kind, fd)
        mman.unmap_memory(elsewhere, self.size_bytes)
        mman.map_memory(self.address, self.size_bytes, READ_WRITE, kind | MapFlag.FIXED, fd)

    def protect(self, offset: int, size_bytes: int, protection: Protection) -> None:
        r"""Change the protection of pages. A forbidden access kills the process.

        Raises `ValueError` outside, and `OSError`.

        >>> from vmm import HostMapping, Protection
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     memory.protect(0, 0x1000, Protection.READ)
        ...     memory.read(0, 1)
        b'\x00'
        """
        self._part(offset, size_bytes)
        mman.protect_memory(self.address + offset, size_bytes, protection)

    def _part(self, offset: int, size_bytes: int) -> memoryview:
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise ValueError(f"{size_bytes:#x} bytes at {offset:#x} are outside {self!r}")
        return self.view()[offset : offset + size_bytes]
