"""The shared mappings of a process: what the kernel is asked for, and what its text says."""

import errno
import mmap
from pathlib import Path

import pytest

from kvm_abi import mman
from vmm.kvm.memory import HostMapping
from vmm.kvm.sharedmemory import shared_among, shared_mappings

PAGE = 4096
MAPS = "\n".join(
    (
        "55d0-55e0 r--p 00000000 fe:00 260386                     /usr/bin/a program",
        "7f00-7f10 rw-s 00000000 00:01 42                         /dev/zero (deleted)",
        "7f20-7f30 ---s 00000000 00:01 43 ",
        "7f30-7f40 rw-p 00000000 00:00 0 ",
        "7f50-7f60 rw-s 00000000 00:0d 44                         anon_inode:kvm-vcpu:0",
    )
)


def test_both_ways_find_the_same() -> None:
    with HostMapping.shared(2 * PAGE) as shared, HostMapping.anonymous(PAGE) as private:
        found = shared_mappings()
        assert found == shared_among(Path("/proc/self/maps").read_text())
        inside = [name for start, end, name in found if start <= shared.address < end]
        assert inside == ["/dev/zero (deleted)"]
        assert not any(start <= private.address < end for start, end, _ in found)


def test_the_text_is_read_by_its_columns() -> None:
    assert shared_among(MAPS) == [
        (0x7F00, 0x7F10, "/dev/zero (deleted)"),
        (0x7F20, 0x7F30, ""),
        (0x7F50, 0x7F60, "anon_inode:kvm-vcpu:0"),
    ]


def test_a_kernel_that_cannot_be_asked_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> list[tuple[int, int, str]]:
        raise OSError(errno.ENOTTY, "PROCMAP_QUERY")

    monkeypatch.setattr(mman, "shared_mappings", unknown)
    with mmap.mmap(-1, PAGE):
        assert "/dev/zero (deleted)" in [name for *_, name in shared_mappings()]


def test_another_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> list[tuple[int, int, str]]:
        raise OSError(errno.EIO, "PROCMAP_QUERY")

    monkeypatch.setattr(mman, "shared_mappings", broken)
    with pytest.raises(OSError, match="PROCMAP_QUERY"):
        shared_mappings()
