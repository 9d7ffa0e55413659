import os
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil
import pytest

from kvm_abi.uapi import Protection
from vmm.kvm.memory import HUGE_PAGE_BYTES, PINNED, HostAddress, HostMapping
from vmm.kvm.vm import Vm

PAGE = 4096


def mapped(address: int) -> bool:
    """Tell whether this process has a mapping at `address`."""
    starts = (region.addr.partition("-") for region in psutil.Process().memory_maps(grouped=False))
    return any(int(start, 16) <= address < int(end, 16) for start, _, end in starts)


@pytest.mark.parametrize(
    "make",
    [
        HostMapping.anonymous,
        HostMapping.shared,
        HostMapping.memfd,
        HostMapping.transparent_huge,
    ],
)
def test_reads_what_was_written(make: Callable[[int], HostMapping]) -> None:
    with make(4 * PAGE) as memory:
        memory.write(PAGE - 1, b"abc")
        assert memory.read(PAGE - 2, 5) == b"\0abc\0"
        assert bytes(memory.view()[PAGE : PAGE + 2]) == b"bc"
        address = memory.address
        assert mapped(address)
    assert not mapped(address)


def test_transparent_huge_is_aligned_and_exact() -> None:
    with HostMapping.transparent_huge(HUGE_PAGE_BYTES) as memory:
        assert memory.address % HUGE_PAGE_BYTES == 0
        maps = psutil.Process().memory_maps(grouped=False)
        sizes = {int(m.addr.split("-")[0], 16): m.addr for m in maps}
        assert memory.address in sizes


def test_hugetlb_maps_or_says_why_not() -> None:
    try:
        memory = HostMapping.hugetlb(HUGE_PAGE_BYTES)
    except OSError as error:
        pytest.skip(f"no huge pages are set aside: {error}")
    with memory:
        memory.write(HUGE_PAGE_BYTES - 1, b"x")
        assert memory.read(HUGE_PAGE_BYTES - 1, 1) == b"x"


def test_memfd_shares_its_file() -> None:
    with HostMapping.memfd(PAGE) as memory:
        memory.write(10, b"here")
        assert os.pread(memory.fd, 4, 10) == b"here"
        fd = memory.fd
    assert memory.fd == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_at_zero_is_memory_like_any_other() -> None:
    try:
        memory = HostMapping.at_zero(2 * PAGE)
    except PermissionError as error:
        pytest.skip(f"needs vm.mmap_min_addr 0 or CAP_SYS_RAWIO: {error}")
    with memory:
        assert memory.address == 0
        memory.write(0, b"\x01\x02\x03\x04")
        assert memory.read(0, 8) == b"\x01\x02\x03\x04\0\0\0\0"
        assert int.from_bytes(memory.view()[0:4], "little") == 0x04030201
        assert memory.differences(bytes(PAGE), PAGE) == [(0, 4)]
        with pytest.raises(FileExistsError):
            HostMapping.at_zero(PAGE)
    assert not mapped(0)


def test_differences_end_where_blocks_end() -> None:
    with HostMapping.anonymous(3 * PAGE) as memory:
        seen = bytes(3 * PAGE)
        assert memory.differences(seen, PAGE) == []
        memory.write(PAGE - 2, b"abc")
        memory.write(2 * PAGE + 8, b"a\0b")
        memory.write(3 * PAGE - 1, b"z")
        assert memory.differences(seen, PAGE) == [
            (PAGE - 2, 2),
            (PAGE, 1),
            (2 * PAGE + 8, 1),
            (2 * PAGE + 10, 1),
            (3 * PAGE - 1, 1),
        ]
        assert memory.differences(seen[:PAGE], PAGE) == [(PAGE - 2, 2)]
        with pytest.raises(ValueError, match="outside"):
            memory.differences(bytes(4 * PAGE), PAGE)


def test_of_many_differences_the_first_are_told() -> None:
    with HostMapping.anonymous(PAGE) as memory:
        memory.write(0, b"a\0" * (PAGE // 2))
        found = memory.differences(bytes(PAGE), PAGE)
        assert 1 < len(found) < PAGE // 2
        assert found == [(2 * index, 1) for index in range(len(found))]


_WRITES_AT_ZERO = """
from vmm.kvm.memory import HostMapping
room = memoryview(bytes(range(256)) * 32)
with HostMapping.at_zero(8192) as memory:
    for start in range(0, 4096, 16):
        for offset in (0, 100, 4000):
            memory.write(offset, room[start : start + 4096])
            assert memory.read(offset, 4096) == room[start : start + 4096]
"""


def test_memory_at_address_0_can_be_written_from_everywhere() -> None:
    """A copy to address 0 took a wrong turn for some places of the source."""
    try:
        HostMapping.at_zero(PAGE).close()
    except OSError as error:
        pytest.skip(f"memory at address 0: {error}")
    ended = subprocess.run(
        [sys.executable, "-c", _WRITES_AT_ZERO], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_reserved_cannot_be_read() -> None:
    program = "from vmm.kvm.memory import HostMapping; HostMapping.reserved(4096).read(0, 1)"
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -11


@pytest.mark.parametrize("aligned_bytes", [PAGE, 2 << 20, 1 << 30])
def test_reserved_is_aligned_and_leaves_nothing_around(aligned_bytes: int) -> None:
    before = _mapped_bytes()
    with HostMapping.reserved(3 * PAGE, aligned_bytes=aligned_bytes) as memory:
        assert memory.address % aligned_bytes == 0
        assert _mapped_bytes() - before == 3 * PAGE
    assert _mapped_bytes() == before


def _mapped_bytes() -> int:
    return psutil.Process().memory_info().vms


def test_anonymous_discards_and_protects() -> None:
    with HostMapping.anonymous(2 * PAGE) as memory:
        memory.write(0, b"a" * PAGE * 2)
        memory.discard(0, PAGE)
        assert memory.read(PAGE - 1, 2) == b"\0a"
        memory.protect(PAGE, PAGE, Protection.READ)
        permissions = {m.addr.split("-")[0]: m.perms for m in psutil.Process().memory_maps(False)}
        assert permissions[f"{memory.address + PAGE:08x}"] == "r--p"


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, PAGE + 1), (PAGE, 1), (0, -1)])
def test_refuses_what_is_outside(offset: int, size: int) -> None:
    with HostMapping.anonymous(PAGE) as memory, pytest.raises(ValueError, match="outside"):
        memory.read(offset, size)


def test_address_of() -> None:
    with HostMapping.anonymous(PAGE) as memory:
        assert HostAddress(memory, PAGE).hva == memory.address + PAGE
        for outside in (-1, PAGE + 1):
            with pytest.raises(ValueError, match="outside"):
                memory.address_of(outside)
    with pytest.raises(ValueError, match="closed"):
        memory.address_of(0)


def test_a_pinned_mapping_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = HostMapping.anonymous(PAGE)
    slots = {0x10001: memory, 2: memory}
    monkeypatch.setitem(PINNED, 5, slots)
    with pytest.raises(RuntimeError, match="in use by slot 0x2 of VM 5, slot 0x10001 of VM 5"):
        memory.close()
    memory.write(0, b"still here")
    slots.clear()
    memory.close()
    assert memory.closed


def test_close_is_idempotent_and_final() -> None:
    memory = HostMapping.memfd(PAGE)
    memory.close()
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        memory.read(0, 1)


def test_a_view_keeps_the_memory_mapped() -> None:
    memory = HostMapping.anonymous(PAGE)
    part = memory.view()[16:20]
    memory.close()
    part[:] = b"safe"
    assert bytes(part) == b"safe"
    address = memory.address
    assert mapped(address)
    del part
    assert not mapped(address)


def test_a_memfd_is_punched_vacated_and_refilled() -> None:
    with HostMapping.memfd(3 * PAGE) as memory:
        memory.write(0, b"x" * memory.size_bytes)
        memory.punch(0, PAGE)
        assert memory.read(0, PAGE) == bytes(PAGE)
        memory.vacate(PAGE, PAGE)
        assert memory.read(2 * PAGE, 1) == b"x"
        memory.refill(PAGE, PAGE)
        assert memory.read(PAGE, PAGE) == b"x" * PAGE


def test_anonymous_memory_that_is_mapped_anew_is_empty() -> None:
    with HostMapping.anonymous(2 * PAGE) as memory:
        memory.write(0, b"x" * memory.size_bytes)
        memory.vacate(0, PAGE)
        memory.refill(0, PAGE)
        assert memory.read(0, PAGE) == bytes(PAGE)
        assert memory.read(PAGE, 1) == b"x"


@pytest.mark.parametrize(
    ("make", "size_bytes"),
    [
        (HostMapping.anonymous, PAGE + 1),
        (HostMapping.anonymous, 0),
        (HostMapping.shared, PAGE // 2),
        (HostMapping.memfd, PAGE + 512),
        (HostMapping.transparent_huge, HUGE_PAGE_BYTES + 1),
        (HostMapping.at_zero, 1),
        (HostMapping.reserved, -PAGE),
        (HostMapping.hugetlb, PAGE),
    ],
)
def test_a_size_that_is_no_whole_pages_is_refused(
    make: Callable[[int], HostMapping], size_bytes: int
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="are no whole pages of"):
        make(size_bytes)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_exception_in_flight_is_not_hidden_by_what_cannot_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = HostMapping.anonymous(PAGE)
    slots = {1: memory}
    monkeypatch.setitem(PINNED, 3, slots)
    with pytest.raises(ZeroDivisionError) as caught, memory:
        raise ZeroDivisionError
    assert caught.value.__notes__ == [
        f"not closed either: {memory!r} is in use by slot 0x1 of VM 3"
    ]
    with pytest.raises(RuntimeError, match="is in use by slot"), memory:
        pass
    slots.clear()
    memory.close()


def test_a_mapping_is_no_address() -> None:
    vm = Vm(os.open(os.devnull, os.O_RDONLY), PAGE)
    refused = pytest.raises(TypeError, match=r"pass HostAddress\(mapping, offset\)")
    with HostMapping.anonymous(PAGE) as memory, vm, refused:
        vm.set_user_memory_region(0, 0, 0, PAGE, memory)  # type: ignore[arg-type]


def test_a_mapping_may_be_closed_while_another_thread_makes_vms_and_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots: dict[int, HostMapping] = {}
    monkeypatch.setitem(PINNED, 1 << 20, slots)
    done = threading.Event()

    def churn(other: HostMapping) -> None:
        while not done.is_set():
            for number in range(200):
                slots[number] = other
                PINNED[(1 << 20) + 1 + number] = slots
            for number in range(200):
                del slots[number], PINNED[(1 << 20) + 1 + number]

    before = sys.getswitchinterval()
    with HostMapping.anonymous(PAGE) as memory, HostMapping.anonymous(PAGE) as other:
        thread = threading.Thread(target=churn, args=(other,))
        thread.start()
        try:
            sys.setswitchinterval(1e-6)
            for _ in range(100):
                assert memory._pins() == []
        finally:
            sys.setswitchinterval(before)
            done.set()
            thread.join()
