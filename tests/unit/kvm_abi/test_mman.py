"""System calls on the process's own memory."""

import gc
import itertools
import threading

import pytest

from kvm_abi import mman
from kvm_abi.uapi import MapFlag, Protection
from vmm.kvm.memory import HostMapping


def test_mapping_errors_name_the_call() -> None:
    with pytest.raises(OSError, match="mmap: Invalid argument"):
        mman.map_memory(0, 0, Protection.READ, MapFlag.PRIVATE | MapFlag.ANONYMOUS)


needs_paging = pytest.mark.skipif(not mman.can_page(), reason="no userfaultfd for this process")


@needs_paging
def test_pages_are_fetched_when_they_are_met() -> None:
    with HostMapping.anonymous(0x3000) as memory:
        memory.write(0x1000, b"first")
        pager = mman.Pager(memory.address_of(0x1000), 0x2000, guards=False)
        memory.write(0x1002, b"!!")
        assert pager.stop() == []
        assert memory.read(0x1000, 5) == b"fi!!t"


@needs_paging
def test_who_writes_to_a_guarded_page_is_held_up() -> None:
    with HostMapping.anonymous(0x2000) as memory:
        memory.write(0, bytes(range(8)))
        memory.write(0x1000, b"x")
        pager = mman.Pager(memory.address_of(0), 0x2000, guards=True)
        memory.write(0, b"other")
        assert pager.stop() == []
        assert memory.read(0, 8) == b"other" + bytes((5, 6, 7))


@needs_paging
def test_who_writes_while_a_guard_begins_or_ends_has_missed_nothing() -> None:
    with HostMapping.anonymous(0x1000) as memory:
        memory.write(0, bytes(4))
        is_over = threading.Event()

        def write() -> None:
            for number in itertools.count():
                if is_over.is_set():
                    return
                memory.write(0, (number & 0xFFFF_FFFF).to_bytes(4, "little"))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            found = [
                mman.Pager(memory.address_of(0), 0x1000, guards=True).stop() for _ in range(400)
            ]
        finally:
            is_over.set()
            writer.join()
        assert found == [[]] * 400


@needs_paging
def test_what_changed_with_nobody_held_up_is_told() -> None:
    with HostMapping.anonymous(0x2000) as memory:
        memory.write(0x1000, b"x")
        pager = mman.Pager(memory.address_of(0), 0x2000, guards=True)
        memory.discard(0x1000, 0x1000)
        assert pager.stop() == [1]


@needs_paging
def test_pages_are_in_the_charge_of_one() -> None:
    with HostMapping.anonymous(0x1000) as memory:
        memory.write(0, b"x")
        pager = mman.Pager(memory.address_of(0), 0x1000, guards=True)
        with pytest.raises(OSError, match="userfaultfd"):
            mman.Pager(memory.address_of(0), 0x1000, guards=False)
        assert pager.stop() == []
        assert memory.read(0, 1) == b"x"


def test_memory_that_the_kernel_does_not_unmap_is_passed_over(
    capfd: pytest.CaptureFixture[str],
) -> None:
    view = mman.owned_memory(1, 4096)  # No page begins there: EINVAL.
    del view
    gc.collect()
    assert capfd.readouterr().err == ""
