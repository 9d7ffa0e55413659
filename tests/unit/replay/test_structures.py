"""The structures that strace does not print."""

import struct

import pytest

from kvm_abi.uapi import Ioctl
from vmm.replay.structures import DECODED, structure_text

REGION2 = struct.pack("<II4QiI112x", 7, 4, 0x10000, 0x2000, 0x7F00, 0x1000, -1, 0)
CAP = struct.pack("<II4Q64x", 168, 0, 3, 0, 0, 0)


@pytest.mark.parametrize(
    ("request_number", "data", "text"),
    [
        (
            Ioctl.SET_USER_MEMORY_REGION2,
            REGION2,
            "{slot=7, flags=0x4, guest_phys_addr=0x10000, memory_size=8192, "
            "userspace_addr=0x7f00, guest_memfd_offset=0x1000, guest_memfd=-1, pad1=0x0}",
        ),
        (
            Ioctl.ENABLE_CAP,
            CAP,
            "{cap=KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, flags=0x0, args=[0x3, 0x0, 0x0, 0x0]}",
        ),
        (
            Ioctl.ENABLE_CAP,
            b"\xff\x03" + CAP[2:],
            "{cap=1023, flags=0x0, args=[0x3, 0x0, 0x0, 0x0]}",
        ),
        (
            Ioctl.GET_DIRTY_LOG,
            struct.pack("<IIQ", 3, 0, 0x7F00),
            "{slot=3, padding1=0x0, dirty_bitmap=0x7f00}",
        ),
        (
            Ioctl.CLEAR_DIRTY_LOG,
            struct.pack("<IIQQ", 3, 64, 128, 0x7F00),
            "{slot=3, num_pages=64, first_page=128, dirty_bitmap=0x7f00}",
        ),
        (Ioctl.SET_IDENTITY_MAP_ADDR, struct.pack("<Q", 0xFFFBC000), "[0xfffbc000]"),
        (
            Ioctl.SET_MEMORY_ATTRIBUTES,
            struct.pack("<4Q", 0x1000, 0x2000, 8, 0),
            "{address=0x1000, size=8192, attributes=0x8, flags=0x0}",
        ),
        (Ioctl.CREATE_GUEST_MEMFD, struct.pack("<QQ48x", 4096, 1), "{size=4096, flags=0x1}"),
        (
            Ioctl.PRE_FAULT_MEMORY,
            struct.pack("<3Q40x", 0x10000, 0x2000, 0),
            "{gpa=0x10000, size=8192, flags=0x0}",
        ),
    ],
)
def test_a_structure_as_strace_would_print_it(request_number: int, data: bytes, text: str) -> None:
    assert structure_text(request_number, data) == text


def test_every_decoded_request_has_a_form_of_its_size() -> None:
    for request in DECODED:
        assert structure_text(request, bytes(request.size_bytes))
        assert structure_text(request, bytes(request.size_bytes - 1)) == ""
    assert structure_text(Ioctl.RUN, b"") == ""
