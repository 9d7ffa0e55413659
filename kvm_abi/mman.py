"""System calls on the process's own memory, typed: mmap(2) and the like, and userfaultfd(2).

Addresses are `int`; 0 is an address like any other.
"""

import errno
import os
from collections.abc import Sequence
from struct import Struct

from kvm_abi._kvm import ffi as _ffi, lib as _lib
from kvm_abi.uapi import PAGE_SIZE_BYTES, Advice, MapFlag, Protection

MAX_DIFFERENCES = 64
"""The most stretches that `differences` returns."""

_PATH_MAX = 4096
_NEWS = Struct("<QQQ")  # the number of a stretch, offset, length
_NEWS_BLOCKS = 4
_FOUND = _ffi.typeof(f"uint64_t[{2 * MAX_DIFFERENCES}]")
_NEWS_FOUND = _ffi.typeof(f"uint64_t[{3 * MAX_DIFFERENCES}]")
_new = _ffi.new
_buffer = _ffi.buffer


def map_memory(
    address: int,
    size_bytes: int,
    protection: Protection,
    flags: MapFlag,
    fd: int = -1,
    offset_bytes: int = 0,
) -> int:
    """Call mmap(2) and return the address of the mapping. Raises `OSError`."""
    result = _lib.abi_mmap(address, size_bytes, protection, flags, fd, offset_bytes)
    return checked_result("mmap", result)


def unmap_memory(address: int, size_bytes: int) -> None:
    """Call munmap(2). Raises `OSError`."""
    checked_result("munmap", _lib.abi_munmap(address, size_bytes))


def protect_memory(address: int, size_bytes: int, protection: Protection) -> None:
    """Call mprotect(2). Raises `OSError`."""
    checked_result("mprotect", _lib.abi_mprotect(address, size_bytes, protection))


def advise_memory(address: int, size_bytes: int, advice: Advice) -> None:
    """Call madvise(2). Raises `OSError`."""
    checked_result("madvise", _lib.abi_madvise(address, size_bytes, advice))


def move_pages(address: int, pages: int, to: int) -> None:
    """Call mremap(2) for each page, moving it to `to`. Raises `OSError`.

    Private memory of zeros stays at the old addresses.
    """
    checked_result("mremap", _lib.abi_move_pages(address, pages, to))


def fallocate(fd: int, mode: int, offset: int, size_bytes: int) -> None:
    """Call fallocate(2). Raises `OSError`.

    Offset and size are unsigned 64-bit numbers, passed to the kernel bit for bit.
    """
    checked_result("fallocate", _lib.abi_fallocate(fd, mode, offset, size_bytes))


def memory_buffer(memfd: int, size_bytes: int) -> int:
    """Return a DMA buffer of a memfd's first bytes (UDMABUF_CREATE), which can be mapped.

    The memfd can be sealed, and cannot shrink any more. Raises `OSError`.
    """
    device = os.open("/dev/udmabuf", os.O_RDWR | os.O_CLOEXEC)
    try:
        result = _lib.abi_memory_buffer(device, memfd, size_bytes)
        return checked_result("UDMABUF_CREATE", result)
    finally:
        os.close(device)


def is_fallocate_filtered(number: int) -> bool:
    """Whether a filter of system calls (seccomp) answers fallocate(2) with this errno."""
    return bool(_lib.abi_fallocate(-1, 0, 0, PAGE_SIZE_BYTES) == -number != -errno.EBADF)


def owned_memory(address: int, size_bytes: int) -> memoryview:
    """Return a view of a mapping; it is unmapped once no view or slice of it is left.

    Where the kernel has no memory to do that (ENOMEM), it stays until the process ends.
    """
    # Nobody hears an exception that is raised where objects are freed: Python prints it.
    owner = _ffi.gc(_ffi.cast("char *", address), lambda _: _lib.abi_munmap(address, size_bytes))
    return memoryview(_buffer(owner, size_bytes))


def differences(address: int, data: bytes | memoryview, block_bytes: int) -> list[tuple[int, int]]:
    """Return where memory differs from `data`: (offset, length) in bytes, ascending.

    No stretch crosses the end of a block. At most `MAX_DIFFERENCES` are returned, the first ones.
    """
    found = _new(_FOUND)
    count = _lib.abi_differences(
        address, _ffi.from_buffer(data), len(data), block_bytes, found, MAX_DIFFERENCES
    )
    return [(found[2 * index], found[2 * index + 1]) for index in range(count)]


class Watched:
    """Stretches of memory that are compared with copies of their old content in one call.

    A stretch is its address and the copy, in whole blocks of `block_bytes`. The caller must keep
    the memory mapped.
    """

    def __init__(self, stretches: Sequence[tuple[int, memoryview]], block_bytes: int) -> None:
        copies = [_ffi.from_buffer(copy) for _, copy in stretches]
        words: list[int] = []
        for (address, _), copy in zip(stretches, copies, strict=True):
            words += address, int(_ffi.cast("uintptr_t", copy)), len(copy)
        self._copies = copies  # Keeps the copies at their addresses.
        self._words = _new("uint64_t[]", words)
        self._block_bytes = block_bytes
        self._place = _new("uint64_t[2]")
        self._found = _new(_NEWS_FOUND)
        self._data = _new("char[]", _NEWS_BLOCKS * block_bytes)
        self._found_bytes, self._data_bytes = _buffer(self._found), _buffer(self._data)

    def news(self) -> list[tuple[int, int, bytes]]:
        """Return (number of the stretch, offset, bytes) of each difference; update the copies.

        They ascend; a difference that crosses the end of a block is split there.
        """
        news: list[tuple[int, int, bytes]] = []
        place = self._place
        place[0] = place[1] = 0
        while place[0] < len(self._copies):
            found = self._found_bytes[: self._more() * _NEWS.size]
            at = 0
            for number, offset, length in _NEWS.iter_unpack(found):
                news.append((number, offset, self._data_bytes[at : at + length]))
                at += length
        return news

    def _more(self) -> int:
        count: int = _lib.abi_news(
            *(self._words, len(self._copies), self._place, self._block_bytes),
            *(self._found, MAX_DIFFERENCES, self._data, len(self._data)),
        )
        return count


class Pager:
    """userfaultfd on private anonymous memory, served by a thread.

    With ``guards``, the first write to a page faults first; else pages are dropped, and their
    content is fetched at the first access. The caller must keep the memory mapped.
    """

    def __init__(self, address: int, size_bytes: int, *, guards: bool) -> None:
        """Start. Raises `OSError`."""
        self._pages = size_bytes // PAGE_SIZE_BYTES
        started = _new("void **")
        result = _lib.abi_pager_start(address, self._pages, guards, started)
        self._started = started[0]
        if result and self._started != _ffi.NULL:
            self.stop()
        checked_result("userfaultfd", result)

    def stop(self) -> list[int]:
        """Fetch all remaining pages and stop; return guarded pages that changed without a fault.

        Raises `OSError`.
        """
        bad = _new("unsigned char[]", self._pages)
        started, self._started = self._started, _ffi.NULL
        checked_result("userfaultfd", _lib.abi_pager_stop(started, bad))
        return [page for page in range(self._pages) if bad[page]]


def can_page() -> bool:
    """Return whether this process may use userfaultfd, also for faults in the kernel."""
    return bool(_lib.abi_can_page() == 0)


def shared_mappings(fd: int) -> list[tuple[int, int, str]]:
    """Return (start, end, name) of a process's shared mappings, ascending.

    `fd` is its `/proc/PID/maps`. Raises `OSError`: ENOTTY before Linux 6.11 (PROCMAP_QUERY).
    """
    found: list[tuple[int, int, str]] = []
    place, name = _new("uint64_t[2]"), _new("char[]", _PATH_MAX)
    while True:
        result = _lib.abi_next_shared_mapping(fd, place[1], place, name, _PATH_MAX)
        if result == -errno.ENOENT:
            return found
        checked_result("PROCMAP_QUERY", result)
        found.append((place[0], place[1], os.fsdecode(_ffi.string(name))))


def checked_result(call: str, result: int) -> int:
    """Return the result of a system call. Raises `OSError`, which names the call, if it failed."""
    if result < 0:
        raise OSError(-result, f"{call}: {os.strerror(-result)}")
    return int(result)
