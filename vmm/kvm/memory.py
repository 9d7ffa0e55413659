"""Host memory for slots: who owns a mapping, and until when.

A slot reaches its memory through an address, so a mapping must outlive the slots that use
it. Each `Vm` pins the mapping of a slot for as long as the slot exists, and a pinned mapping
refuses to be closed. A view keeps its memory mapped until the view is gone.
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kvm_abi import mman
from kvm_abi.shortcut import AddressFields
from kvm_abi.uapi import PAGE_SIZE_BYTES, Advice, MapFlag, Protection
from vmm.kvm.hostpages import PRIVATE, READ_WRITE, HostPages

HUGE_PAGE_BYTES = 2 << 20
GIANT_PAGE_BYTES = 1 << 30

_RESERVED = MapFlag.PRIVATE | MapFlag.ANONYMOUS  # Reserved at once, as hugetlb must be.
_SHARED = MapFlag.SHARED | MapFlag.ANONYMOUS | MapFlag.NORESERVE


class HostMapping(HostPages):
    """A mapping of this process, unmapped on `close` or at the end of its `with` block.

    Create one with the class methods. All sizes are bytes and multiples of the page size, else the
    methods raise `ValueError`; they raise `OSError` if the kernel refuses. Offsets are bytes from
    the start.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x2000) as memory:
        ...     memory.write(0x1ffe, b"ab")
        ...     memory.read(0x1ffc, 4)
        b'\\x00\\x00ab'
    """

    @classmethod
    def anonymous(cls, size_bytes: int) -> Self:
        r"""Map private anonymous memory, which is zeros. Raises `ValueError` and `OSError`.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     memory.read(0, 2)
        b'\x00\x00'
        """
        return cls(mman.map_memory(0, _whole(size_bytes), READ_WRITE, PRIVATE), size_bytes)

    @classmethod
    def shared(cls, size_bytes: int) -> Self:
        """Map shared anonymous memory: a forked child sees the same pages.

        Raises `ValueError` and `OSError`.

        >>> import os
        >>> from vmm import HostMapping
        >>> with HostMapping.shared(0x1000) as memory:
        ...     if not os.fork():
        ...         memory.write(0, b"child")
        ...         os._exit(0)
        ...     os.wait()[1], memory.read(0, 5)
        (0, b'child')
        """
        return cls(mman.map_memory(0, _whole(size_bytes), READ_WRITE, _SHARED), size_bytes)

    @classmethod
    def memfd(cls, size_bytes: int, *, huge: bool = False) -> Self:
        """Map a memfd, which stays open as `fd` until the mapping is closed.

        With `huge` it consists of reserved huge pages (MFD_HUGETLB). Raises `ValueError`, and
        `OSError`, ENOMEM if too few of those are free.

        >>> import os
        >>> from vmm import HostMapping
        >>> with HostMapping.memfd(0x1000) as memory:
        ...     memory.write(0, b"x")
        ...     os.pread(memory.fd, 1, 0)
        b'x'
        """
        _whole(size_bytes, HUGE_PAGE_BYTES if huge else PAGE_SIZE_BYTES)
        pages = os.MFD_HUGETLB | os.MFD_HUGE_2MB if huge else 0
        fd = os.memfd_create("memslot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | pages)
        try:
            os.ftruncate(fd, size_bytes)
            return cls.of_file(fd, size_bytes)
        finally:
            os.close(fd)

    @classmethod
    def of_file(cls, fd: int, size_bytes: int, *, private: bool = False) -> Self:
        """Map the start of an open file; the mapping keeps its own descriptor.

        Writes to a `private` mapping do not reach the file. Raises `ValueError` and `OSError`.

        >>> import tempfile
        >>> from vmm import HostMapping
        >>> with tempfile.TemporaryFile() as file:
        ...     _ = file.truncate(0x1000)
        ...     with HostMapping.of_file(file.fileno(), 0x1000) as memory:
        ...         memory.write(0, b"x")
        ...     file.read(1)
        b'x'
        """
        sharing = MapFlag.PRIVATE if private else MapFlag.SHARED
        own = os.dup(fd)
        try:
            address = mman.map_memory(0, _whole(size_bytes), READ_WRITE, sharing, own)
        except BaseException:
            os.close(own)
            raise
        return cls(address, size_bytes, own, private=private)

    @classmethod
    def pfnmap(cls, fd: int, size_bytes: int) -> Self:
        """Map page frames of the memfd `fd`, from its start on, as a driver maps a device's memory.

        The mapping is VM_PFNMAP: KVM finds the pages in the page table, and takes them from no
        file. It keeps them, and the file cannot shrink any more (F_SEAL_SHRINK).

        Raises `ValueError`, and `OSError`: ENOENT without /dev/udmabuf, and ENOTTY where that maps
        pages in another way.

        >>> from vmm import HostMapping
        >>> with HostMapping.memfd(0x1000) as file:
        ...     file.write(0, b"x")
        ...     try:
        ...         with HostMapping.pfnmap(file.fd, 0x1000) as memory:
        ...             assert memory.read(0, 1) == b"x"
        ...     except OSError:
        ...         pass
        """
        frames = mman.memory_buffer(fd, _whole(size_bytes))
        try:
            memory = cls.of_file(frames, size_bytes)
        finally:
            os.close(frames)
        try:
            memory.discard(0, size_bytes)
        except OSError:
            return memory  # What no page structure is looked at for cannot be dropped.
        memory.close()
        raise OSError(errno.ENOTTY, "/dev/udmabuf does not map page frames")

    @classmethod
    def hugetlb(cls, size_bytes: int) -> Self:
        """Map private reserved huge pages; `size_bytes` is a multiple of their size.

        Raises `OSError`, ENOMEM if the administrator has reserved too few (vm.nr_hugepages), and
        `ValueError`.

        >>> import errno
        >>> from vmm import HostMapping
        >>> try:
        ...     HostMapping.hugetlb(2 << 20).close()
        ... except OSError as error:
        ...     assert error.errno == errno.ENOMEM
        """
        flags = _RESERVED | MapFlag.HUGETLB
        whole = _whole(size_bytes, HUGE_PAGE_BYTES)
        return cls(mman.map_memory(0, whole, READ_WRITE, flags), size_bytes)

    @classmethod
    def transparent_huge(cls, size_bytes: int) -> Self:
        """Map private memory aligned to a huge page, and ask for huge pages.

        The kernel decides whether it uses huge pages. Raises `ValueError` and `OSError`.

        >>> from vmm import HostMapping
        >>> with HostMapping.transparent_huge(4 << 20) as memory:
        ...     memory.address % (2 << 20)
        0
        """
        address = _map_aligned(size_bytes, HUGE_PAGE_BYTES, READ_WRITE)
        mapping = cls(address, size_bytes)
        try:
            mman.advise_memory(address, size_bytes, Advice.HUGEPAGE)
        except BaseException:
            mapping.close()
            raise
        return mapping

    @classmethod
    def at_zero(cls, size_bytes: int) -> Self:
        """Map private memory at virtual address 0.

        Raises `OSError`: EPERM unless vm.mmap_min_addr is 0 or the process has CAP_SYS_RAWIO, and
        EEXIST if something is mapped there; and `ValueError`.

        >>> from vmm import HostMapping
        >>> try:
        ...     with HostMapping.at_zero(0x1000) as memory:
        ...         assert memory.address == 0
        ... except PermissionError:
        ...     pass
        """
        flags = PRIVATE | MapFlag.FIXED_NOREPLACE
        return cls(mman.map_memory(0, _whole(size_bytes), READ_WRITE, flags), size_bytes)

    @classmethod
    def reserved(cls, size_bytes: int, *, aligned_bytes: int = PAGE_SIZE_BYTES) -> Self:
        """Reserve addresses that neither this process nor a guest can access.

        They begin at a multiple of `aligned_bytes`, which is whole pages. Reading or writing them
        through this object kills the process. Raises `ValueError` and `OSError`.

        >>> from vmm import HostMapping
        >>> with HostMapping.reserved(0x1000) as memory:
        ...     memory.size_bytes
        4096
        """
        return cls(_map_aligned(size_bytes, aligned_bytes, Protection.NONE), size_bytes)

    def __repr__(self) -> str:
        return f"HostMapping({self.address:#x}, {self.size_bytes:#x} bytes)"

    @property
    def closed(self) -> bool:
        """Whether the mapping has been closed."""
        return self._view is None

    @property
    def fd(self) -> int:
        """The descriptor of the mapped file, or -1."""
        return self._fd

    def close(self) -> None:
        """Unmap the memory, as soon as the last view of it is gone. Closing twice is fine.

        Raises `RuntimeError` while a slot uses the mapping.

        >>> from vmm import HostAddress, HostMapping, Kvm
        >>> memory = HostMapping.anonymous(0x1000)
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     try:
        ...         memory.close()
        ...     except RuntimeError as error:
        ...         print("is in use by slot 0x0 of VM" in str(error))
        True
        >>> memory.close()
        """
        users = ", ".join(f"slot {slot:#x} of VM {vm}" for vm, slot in self._pins())
        if users:
            raise RuntimeError(f"{self!r} is in use by {users}")
        super().close()

    @property
    def in_use(self) -> bool:
        """Whether a slot uses the mapping, so that it cannot be closed.

        >>> from vmm import HostMapping
        >>> with HostMapping.anonymous(0x1000) as memory:
        ...     memory.in_use
        False
        """
        return bool(self._pins())

    def _pins(self) -> list[tuple[int, int]]:
        return sorted(
            (vm, slot)
            for vm, slots in list(PINNED.items())  # Copies: another thread may change them.
            for slot, mapping in list(slots.items())
            if mapping is self
        )


PINNED: dict[int, Mapping[int, HostMapping | None]] = {}
"""The mappings that slots use, by the descriptor of their VM and their slot number: None
of a slot that is deleted.

Each table belongs to its VM, so that a slot costs nothing extra; only closing a mapping searches
all tables.
"""


@dataclass(frozen=True)
class HostAddress(AddressFields):
    """An hva inside a mapping, which is pinned for as long as a slot uses it.

    ``offset`` is bytes from the start of the mapping. ``hva`` raises `ValueError` if the mapping is
    closed, or ends before it.

        >>> from vmm import HostAddress, HostMapping
        >>> with HostMapping.anonymous(0x2000) as memory:
        ...     HostAddress(memory, 0x1000).hva - HostAddress(memory, 0).hva
        4096
    """

    __slots__ = ()

    mapping: HostMapping
    offset: int

    def __reduce__(self) -> tuple[type[Self], tuple[HostMapping, int]]:
        return type(self), (self.mapping, self.offset)

    @property
    def hva(self) -> int:
        """The address as a number. Raises `ValueError` outside the mapping."""
        return self.mapping.address_of(self.offset)


def _map_aligned(size_bytes: int, aligned_bytes: int, protection: Protection) -> int:
    """Map private memory at a multiple of ``aligned_bytes``, and return its address."""
    room = _whole(size_bytes) + aligned_bytes - PAGE_SIZE_BYTES
    start = mman.map_memory(0, room, protection, PRIVATE)
    address = start + -start % aligned_bytes
    if address > start:
        mman.unmap_memory(start, address - start)
    end = address + size_bytes
    if end < start + room:
        mman.unmap_memory(end, start + room - end)
    return address


def _whole(size_bytes: int, page_bytes: int = PAGE_SIZE_BYTES) -> int:
    if size_bytes <= 0 or size_bytes % page_bytes:
        raise ValueError(f"{size_bytes:#x} bytes are no whole pages of {page_bytes:#x}")
    return size_bytes
