"""Several changes of memslots by one call."""

import errno
from collections.abc import Iterator

import pytest

from kvm_abi.raw import RegionsError
from kvm_abi.uapi import MemFlag
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.regions import Region, Regions
from vmm.kvm.system import Kvm
from vmm.kvm.vm import Vm
from vmm.testing.recorded import RecordedKvm

PAGE = 4096


@pytest.fixture
def memory() -> Iterator[HostMapping]:
    with HostMapping.anonymous(2 * PAGE) as mapping:
        yield mapping


@pytest.fixture
def vm(kvm: Kvm, memory: HostMapping) -> Iterator[Vm]:
    """A VM that is closed before the memory."""
    with kvm.create_vm() as machine:
        yield machine


def at(memory: HostMapping, slot: int, gfn: int, flags: int = 0) -> Region:
    """Return the creation, or the move, of a slot of one page."""
    return Region(slot, flags, gfn * PAGE, PAGE, HostAddress(memory, 0))


def test_changes_are_made_in_order(vm: Vm, memory: HostMapping) -> None:
    vm.set_user_memory_regions([at(memory, 0, 1), at(memory, 1, 2)])
    # The flag needs a new slot, and the first gpa is free only when slot 0 has moved.
    read_only = at(memory, 1, 1, MemFlag.READONLY)
    vm.set_user_memory_regions([at(memory, 0, 3), Region(slot=1), read_only])
    with pytest.raises(RegionsError) as refused:
        vm.set_user_memory_regions([at(memory, 2, 3)])
    assert refused.value.errno == errno.EEXIST


def test_a_refusal_says_which_change_it_is_and_leaves_those_before_it(
    vm: Vm, memory: HostMapping
) -> None:
    changes = [at(memory, 0, 1), at(memory, 1, 2), at(memory, 2, 1), at(memory, 3, 4)]
    with pytest.raises(RegionsError) as refused:
        vm.set_user_memory_regions(changes)
    assert refused.value.errno == errno.EEXIST
    assert refused.value.done == 2
    text = str(refused.value)
    assert text.startswith("KVM_SET_USER_MEMORY_REGION(slot=0x2, flags=0x0, guest_phys_addr=0x1000")
    assert text.endswith(": EEXIST File exists, as number 3 of 4")
    vm.set_user_memory_regions([Region(slot=0), Region(slot=1)])  # They are there.
    with pytest.raises(RegionsError) as refused:
        vm.set_user_memory_regions([Region(slot=3)])  # It is not.
    assert (refused.value.errno, refused.value.done) == (errno.EINVAL, 0)


def test_memory_is_pinned_for_as_long_as_the_slots_that_are_left(
    vm: Vm, memory: HostMapping
) -> None:
    there, gone = at(memory, 0, 1), Region(slot=0)
    vm.set_user_memory_regions([there, gone])
    assert not memory.in_use
    vm.set_user_memory_regions([gone._replace(slot=1), there][1:])
    assert memory.in_use
    vm.set_user_memory_regions([gone, there, gone])
    assert not memory.in_use
    with pytest.raises(RegionsError):
        vm.set_user_memory_regions([there, at(memory, 1, 1), gone])
    assert memory.in_use
    with pytest.raises(RegionsError):
        vm.set_user_memory_regions([gone, gone])
    assert not memory.in_use


def test_prepared_changes_are_made_again_until_their_memory_is_closed(vm: Vm) -> None:
    with HostMapping.anonymous(PAGE) as memory:
        come_and_go = Regions([at(memory, 0, 1), Region(slot=0)])
        for _ in range(3):
            vm.set_user_memory_regions(come_and_go)
    with pytest.raises(ValueError, match="is closed"):
        vm.set_user_memory_regions(come_and_go)
    vm.set_user_memory_region(0, 0, PAGE, PAGE, 0)  # So nothing was done.


def test_nothing_is_no_change_and_a_closed_vm_refuses_one(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        vm.set_user_memory_regions([])
    with pytest.raises(ValueError, match="the VM is closed"):
        vm.set_user_memory_regions([Region(slot=0)])


def test_a_vm_that_remembers_its_slots_knows_those_that_were_made(memory: HostMapping) -> None:
    with RecordedKvm.open() as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_regions([at(memory, 0, 1), at(memory, 1, 2), Region(slot=0)])
        assert set(vm.regions) == {1}
        with pytest.raises(RegionsError):
            vm.set_user_memory_regions([at(memory, 2, 3), at(memory, 3, 3)])
        assert set(vm.regions) == {1, 2}
