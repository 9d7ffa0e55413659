"""Dirty rings and logs cleared by hand, as the VM's objects offer them, on the real kernel."""

import errno
from collections.abc import Callable, Iterator

import pytest

from guests import image
from guests.windows import Windows
from kvm_abi import mman, raw
from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import DIRTY_LOG_PAGE_OFFSET, Cap, DirtyLogManual, MemFlag
from vmm.execution import rings
from vmm.execution.guestcpu import GuestCpu
from vmm.execution.probe import dirty
from vmm.execution.probe.dirty import least_ring_bytes, reads_make_dirty
from vmm.execution.probe.features import probe_features
from vmm.execution.rings import RingHost, shows_memory
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import Vm
from vmm.scenario.history import RingsReset, Touched
from vmm.scenario.operations import GUEST_SIZE_BYTES, PAGE_SIZE_BYTES, REAL_MODE_END, Touch

GUEST_GPA = 0x10000
SLOT = 1


def no_help() -> bool:
    """Leave a vCPU where it stopped."""
    return False


class Tracked:
    """A VM with a logged slot of four pages at gpa 0, and the guest that writes there."""

    def __init__(self, vm: Vm, guest: HostMapping, memory: HostMapping) -> None:
        self.vm = vm
        self._guest = guest
        guest.write(0, image.code())
        self._windows = Windows(guest.view(), GUEST_GPA)
        vm.set_user_memory_region(0, 0, GUEST_GPA, GUEST_SIZE_BYTES, HostAddress(guest, 0))
        flags = MemFlag.LOG_DIRTY_PAGES
        vm.set_user_memory_region(SLOT, flags, 0, memory.size_bytes, HostAddress(memory, 0))
        self._memory = memory

    def move(self, where: int) -> None:
        """Move the slot to gpa 0 or to page 8."""
        gpa, flags = 8 * where * PAGE_SIZE_BYTES, MemFlag.LOG_DIRTY_PAGES
        address = HostAddress(self._memory, 0)
        self.vm.set_user_memory_region(SLOT, flags, gpa, self._memory.size_bytes, address)

    def write(self, vcpu: Vcpu, *pages: int, make_room: Callable[[], bool] = no_help) -> None:
        """Let the guest write to pages, each in a KVM_RUN of its own."""
        cpu = GuestCpu(vcpu, GUEST_GPA, self._guest.view(), self._windows, make_room)
        cpu.insists = True
        for page in pages:
            touch = Touch(page * PAGE_SIZE_BYTES, "write", value=page)
            assert cpu.touch([touch]) == [Touched(0)]


@pytest.fixture
def tracked(kvm: Kvm) -> Iterator[Tracked]:
    with (
        HostMapping.anonymous(GUEST_SIZE_BYTES) as guest,
        HostMapping.anonymous(4 * PAGE_SIZE_BYTES) as memory,
        kvm.create_vm() as vm,
    ):
        yield Tracked(vm, guest, memory)


@pytest.fixture
def ring_bytes(kvm: Kvm) -> int:
    size_bytes = least_ring_bytes(kvm)
    if not size_bytes:
        pytest.skip("needs KVM_CAP_DIRTY_LOG_RING")
    return size_bytes


def test_smallest_ring_is_the_smallest(kvm: Kvm, ring_bytes: int) -> None:
    with kvm.create_vm() as vm:
        with pytest.raises(KvmError) as caught:
            vm.enable_cap(Cap.DIRTY_LOG_RING, ring_bytes // 2)
        assert caught.value.errno == errno.EINVAL
        vm.enable_cap(Cap.DIRTY_LOG_RING, ring_bytes)


def test_reads_are_probed_alike_each_time(kvm: Kvm) -> None:
    for limit in (0, REAL_MODE_END + PAGE_SIZE_BYTES):
        assert reads_make_dirty(kvm, limit) is reads_make_dirty(kvm, limit)


@pytest.mark.parametrize("mode_gpa", [0, REAL_MODE_END])
def test_guests_of_both_modes_are_asked_for_what_their_reads_do(
    kvm: Kvm, mode_gpa: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dirty, "_is_dirty_once_read", lambda _, gpa, bits=0: gpa == mode_gpa)
    assert reads_make_dirty(kvm) is (mode_gpa == 0)
    assert reads_make_dirty(kvm, 2 * REAL_MODE_END) is (mode_gpa != 0)
    assert probe_features(kvm).reads_make_dirty


def test_entries_are_harvested_once_and_reset(tracked: Tracked, ring_bytes: int) -> None:
    tracked.vm.enable_cap(Cap.DIRTY_LOG_RING, ring_bytes)
    vcpu = tracked.vm.create_vcpu(0)
    ring = vcpu.map_dirty_ring(ring_bytes)
    assert vcpu.map_dirty_ring(ring_bytes) is ring
    for pages in ((2, 0), (2,), (3, 1)):
        tracked.write(vcpu, *pages)
        found = ring.harvest()
        assert dict.fromkeys(found) == dict.fromkeys((SLOT, page) for page in pages)
        assert ring.harvest() == []
        assert tracked.vm.reset_dirty_rings() == len(found)
        assert tracked.vm.reset_dirty_rings() == 0


def test_closed_ring_cannot_be_harvested(tracked: Tracked, ring_bytes: int) -> None:
    tracked.vm.enable_cap(Cap.DIRTY_LOG_RING, ring_bytes)
    vcpu = tracked.vm.create_vcpu(0)
    ring = vcpu.map_dirty_ring(ring_bytes)
    vcpu.close()
    ring.close()
    with pytest.raises(ValueError, match="closed"):
        ring.harvest()


def test_a_ring_is_mapped_once_with_the_size_of_a_ring(tracked: Tracked, ring_bytes: int) -> None:
    tracked.vm.enable_cap(Cap.DIRTY_LOG_RING, ring_bytes)
    vcpu = tracked.vm.create_vcpu(0)
    for wrong in (-ring_bytes, 0, 8, PAGE_SIZE_BYTES + 1, 3 * PAGE_SIZE_BYTES):
        with pytest.raises(ValueError, match="no ring has"):
            vcpu.map_dirty_ring(wrong)
    ring = vcpu.map_dirty_ring(ring_bytes)
    with pytest.raises(ValueError, match="the ring is mapped with"):
        vcpu.map_dirty_ring(2 * ring_bytes)
    ring.close()
    with pytest.raises(ValueError, match="closed"):
        vcpu.map_dirty_ring(ring_bytes)


def test_the_ring_is_memory_and_the_page_after_it_is_not(kvm: Kvm, ring_bytes: int) -> None:
    begin = DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE_BYTES
    with kvm.create_vm() as vm:
        vm.enable_cap(Cap.DIRTY_LOG_RING, ring_bytes)
        vcpu = vm.create_vcpu(0)
        assert shows_memory(vcpu, begin)
        assert shows_memory(vcpu, begin + ring_bytes - PAGE_SIZE_BYTES)
        assert not shows_memory(vcpu, begin + ring_bytes)


def test_memory_after_a_ring_is_wrong(
    kvm: Kvm, ring_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rings, "shows_memory", lambda vcpu, offset: True)
    with kvm.create_vm() as vm:
        host = RingHost(vm)
        vm.enable_cap(Cap.DIRTY_LOG_RING, ring_bytes)
        host.enabled(ring_bytes)
        with pytest.raises(WrongAnswerError, match="after a vCPU's dirty ring"):
            host.attach(0, vm.create_vcpu(0))


def test_full_ring_stops_the_vcpu_until_there_is_room(tracked: Tracked, ring_bytes: int) -> None:
    rings = RingHost(tracked.vm)
    tracked.vm.enable_cap(Cap.DIRTY_LOG_RING, ring_bytes)
    rings.enabled(ring_bytes)
    vcpu = tracked.vm.create_vcpu(0)
    rings.attach(0, vcpu)
    stops = 0

    def make_room() -> bool:
        nonlocal stops
        stops += 1
        return rings.make_room(0)

    # After a move every page is tracked anew, so each write is an entry.
    for number in range(ring_bytes // 16):
        tracked.move(number % 2)
        tracked.write(vcpu, 8 * (number % 2), make_room=make_room)
    assert stops
    found = rings.harvest(0)
    assert found.pages == ((SLOT, 0),)
    assert found.full == stops


def test_harvested_entries_may_keep_their_dirty_flag(tracked: Tracked, ring_bytes: int) -> None:
    tracked.vm.enable_cap(Cap.DIRTY_LOG_RING, ring_bytes)
    vcpu = tracked.vm.create_vcpu(0)
    offset = DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE_BYTES
    address = raw.map_kvm_file("a ring", vcpu.fd, ring_bytes, offset)

    def flags() -> list[int]:
        entries = memoryview(bytes(raw.shared_memory(address, ring_bytes)[:])).cast("I")
        return list(entries[::4])

    ring = vcpu.map_dirty_ring(ring_bytes)
    tracked.write(vcpu, 1, 2, 3)
    count = len(ring.harvest())
    assert flags()[:count] == [2 | number & 1 for number in range(count)]
    assert tracked.vm.reset_dirty_rings() == count
    assert not any(flags())
    tracked.write(vcpu, 2)
    assert (SLOT, 2) in ring.harvest()
    mman.unmap_memory(address, ring_bytes)


def test_pages_of_a_ring_that_are_mapped_by_themselves_are_compared(
    tracked: Tracked, ring_bytes: int
) -> None:
    size = max(ring_bytes, 2 * PAGE_SIZE_BYTES)
    host = RingHost(tracked.vm)
    tracked.vm.enable_cap(Cap.DIRTY_LOG_RING, size)
    host.enabled(size)
    vcpu = tracked.vm.create_vcpu(0)
    host.attach(0, vcpu)
    tracked.write(vcpu, 1)
    first, second = DIRTY_LOG_PAGE_OFFSET, DIRTY_LOG_PAGE_OFFSET + 1
    address = raw.map_kvm_file("a page", vcpu.fd, PAGE_SIZE_BYTES, second * PAGE_SIZE_BYTES)
    host.compare(vcpu, second, 1, address)
    host.compare(vcpu, first - 1, 1, address)
    with pytest.raises(WrongAnswerError, match="page 64 of a dirty ring"):
        host.compare(vcpu, first, 1, address)
    mman.unmap_memory(address, PAGE_SIZE_BYTES)


def test_full_ring_that_was_harvested_is_only_reset(tracked: Tracked, ring_bytes: int) -> None:
    rings = RingHost(tracked.vm)
    tracked.vm.enable_cap(Cap.DIRTY_LOG_RING, ring_bytes)
    rings.enabled(ring_bytes)
    vcpu = tracked.vm.create_vcpu(0)
    rings.attach(0, vcpu)
    for number in range(3):
        tracked.move(number % 2)
        tracked.write(vcpu, 8 * (number % 2))
    entries = rings.harvest(0).entries
    assert entries >= 3
    assert rings.make_room(0)
    assert not rings.make_room(0)
    assert rings.reset() == RingsReset()


def test_log_is_cleared_from_an_address(tracked: Tracked) -> None:
    vm = tracked.vm
    if not vm.check_extension(Cap.MANUAL_DIRTY_LOG_PROTECT2):
        pytest.skip("needs KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")
    vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, DirtyLogManual.MANUAL_PROTECT_ENABLE)
    tracked.write(vm.create_vcpu(0), 1, 2)
    bitmap = raw.new("uint64_t[]", [0b0010])
    vm.clear_dirty_log_from(SLOT, 0, 4, raw.address_of(bitmap))
    assert vm.get_dirty_log(SLOT, 4)[0] == 0b0100
    with HostMapping.reserved(PAGE_SIZE_BYTES) as nowhere, pytest.raises(KvmError) as caught:
        vm.clear_dirty_log_from(SLOT, 0, 4, nowhere.address)
    assert caught.value.errno == errno.EFAULT
