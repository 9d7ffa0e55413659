import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvm_abi import raw
from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import Cap, Ioctl, MemFlag
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.kvm.vm import IN_PYTHON, Vm

PAGE = 4096


@pytest.fixture
def memory() -> Iterator[HostMapping]:
    with HostMapping.anonymous(4 * PAGE) as mapping:
        yield mapping


@pytest.fixture
def vm(kvm: Kvm, memory: HostMapping) -> Iterator[Vm]:
    """A VM that is closed before the memory."""
    with kvm.create_vm() as machine:
        yield machine


def test_a_device_that_is_not_kvm(tmp_path: Path) -> None:
    other = tmp_path / "kvm"
    other.touch()
    for each in (other, Path("/dev/null")):
        with pytest.raises(OSError, match="not character device 10:232"):
            Kvm.open(each)
    with pytest.raises(FileNotFoundError):
        Kvm.open(tmp_path / "absent")


@pytest.mark.parametrize("name", ["create_vcpu", "set_tss_addr", "set_nr_mmu_pages"])
def test_text_is_no_number(vm: Vm, name: str) -> None:
    with pytest.raises(TypeError, match="takes no text: 'first'"):
        getattr(vm, name)("first")


@pytest.mark.parametrize("form", ["set_user_memory_region", "set_user_memory_region2"])
@pytest.mark.parametrize(
    ("arguments", "expected", "message"),
    [
        (("a", 0, 0, PAGE, 0), TypeError, "slot='a': an integer is required"),
        ((0, None, 0, PAGE, 0), TypeError, "flags=None: an integer is required"),
        ((0, 0, 0.5, PAGE, 0), TypeError, "guest_phys_addr=0.5: an integer is required"),
        ((0, 0, 0, PAGE, "0"), TypeError, "userspace_addr='0': an integer is required"),
        ((-1, 0, 0, PAGE, 0), OverflowError, "slot=-1: can't convert negative number"),
        ((0, 0, 0, 1 << 64, 0), OverflowError, f"memory_size={1 << 64}: int too big"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(
    vm: Vm, form: str, arguments: tuple[object, ...], expected: type[Exception], message: str
) -> None:
    with pytest.raises(expected) as caught:
        getattr(vm, form)(*arguments)
    assert str(caught.value).startswith(message)


def test_capabilities(kvm: Kvm, vm: Vm) -> None:
    assert kvm.check_extension(Cap.USER_MEMORY) == 1
    assert kvm.check_extension(Cap.NR_MEMSLOTS) >= 32
    assert vm.check_extension(Cap.NR_MEMSLOTS) >= 32
    assert kvm.check_extension(100_000) == 0
    assert kvm.vcpu_mmap_size_bytes >= raw.size_of("struct kvm_run")


def test_a_refusal_says_what_was_asked(vm: Vm, memory: HostMapping) -> None:
    with pytest.raises(KvmError) as caught:
        vm.set_user_memory_region(1, 0, 0x10001, PAGE, HostAddress(memory, 0))
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value) == (
        "KVM_SET_USER_MEMORY_REGION(slot=0x1, flags=0x0, guest_phys_addr=0x10001, "
        f"memory_size=0x1000, userspace_addr={memory.address:#x}): EINVAL Invalid argument"
    )


def test_a_slot_pins_its_mapping_until_it_is_deleted(vm: Vm, memory: HostMapping) -> None:
    vm.set_user_memory_region(3, 0, 0x10000, PAGE, HostAddress(memory, PAGE))
    with pytest.raises(RuntimeError, match="in use by slot 0x3 of VM"):
        memory.close()
    vm.set_user_memory_region(3, 0, 0x40000, PAGE, memory.address + PAGE)  # Moved: still used.
    with pytest.raises(RuntimeError, match="in use by slot 0x3 of VM"):
        memory.close()
    vm.set_user_memory_region(3, 0, 0, 0, 0)
    memory.close()


def test_a_refusal_neither_pins_nor_unpins(vm: Vm, memory: HostMapping) -> None:
    with HostMapping.anonymous(PAGE) as other:
        vm.set_user_memory_region(0, 0, 0x10000, PAGE, HostAddress(memory, 0))
        with pytest.raises(KvmError, match="EEXIST"):
            vm.set_user_memory_region(1, 0, 0x10000, PAGE, HostAddress(other, 0))
        with pytest.raises(KvmError, match="EINVAL"):
            vm.set_user_memory_region(0, 0, 0x10000, PAGE, HostAddress(other, 0))
        with pytest.raises(KvmError, match="EINVAL"):
            vm.set_user_memory_region(0, 0, 0, 0, 1)
    with pytest.raises(RuntimeError, match="slot 0x0 of VM"):
        memory.close()


def test_closing_a_vm_frees_its_mappings_and_vcpus(kvm: Kvm, memory: HostMapping) -> None:
    vm = kvm.create_vm()
    vcpu = vm.create_vcpu(0)
    for slot in range(3):
        vm.set_user_memory_region(slot, 0, slot << 16, PAGE, HostAddress(memory, slot * PAGE))
    vm.close()
    vm.close()
    memory.close()
    with pytest.raises(ValueError, match="the vCPU is closed"):
        vcpu.run()
    with pytest.raises(ValueError, match="the VM is closed"):
        vm.create_vcpu(1)
    with pytest.raises(ValueError, match="the VM is closed"):
        vm.set_user_memory_region(0, 0, 0, 0, 0)


def test_everything_closes_in_any_order(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vcpu = vm.create_vcpu(0)
    kvm.close()
    kvm.close()
    vcpu.close()
    vm.close()
    vcpu.close()
    with pytest.raises(ValueError, match="the device is closed"):
        kvm.create_vm()


def test_addresses_that_the_kernel_cannot_use(vm: Vm, memory: HostMapping) -> None:
    vm.set_user_memory_region(0, MemFlag.LOG_DIRTY_PAGES, 0, PAGE, HostAddress(memory, 0))
    with HostMapping.reserved(PAGE) as nowhere:
        with pytest.raises(KvmError, match="EFAULT"):
            vm.set_user_memory_region_from(nowhere.address)
        with pytest.raises(KvmError, match="EFAULT"):
            vm.get_dirty_log_to(0, nowhere.address)


def test_a_refused_call_that_writes_to_the_bitmap_is_a_wrong_answer(
    vm: Vm, memory: HostMapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm.set_user_memory_region(0, MemFlag.LOG_DIRTY_PAGES, 0, PAGE, HostAddress(memory, 0))
    made = raw.ioctl

    def refuse(fd: int, request: Ioctl, argument: raw.CData | int = 0) -> int:
        made(fd, request, argument)
        raise KvmError(errno.ENOENT, "KVM_GET_DIRTY_LOG", None, "slot=0x0")

    monkeypatch.setattr(raw, "ioctl", refuse)
    with pytest.raises(KvmError, match="ENOENT"):
        vm.get_dirty_log(0, 1)
    with pytest.raises(WrongAnswerError, match="ENOENT, and the bitmap was written to"):
        vm.get_dirty_log(0, 1, fill=b"\xff" * 8)


def test_set_user_memory_region2(vm: Vm, memory: HostMapping) -> None:
    if not vm.check_extension(Cap.USER_MEMORY2):
        pytest.skip("needs KVM_CAP_USER_MEMORY2")
    vm.set_user_memory_region2(0, 0, 0x10000, PAGE, HostAddress(memory, 0))
    with pytest.raises(RuntimeError, match="slot 0x0"):
        memory.close()
    with pytest.raises(KvmError, match=r"KVM_SET_USER_MEMORY_REGION2\(slot=0x0, .*memfd=0x0\)"):
        vm.set_user_memory_region2(0, 1 << 15, 0x10000, PAGE, HostAddress(memory, 0))
    vm.set_user_memory_region2(0, 0, 0, 0, 0)


def test_clear_dirty_log(vm: Vm, memory: HostMapping) -> None:
    with pytest.raises(ValueError, match="too short"):
        vm.clear_dirty_log(0, 0, 65, bytes(8))
    vm.set_user_memory_region(0, MemFlag.LOG_DIRTY_PAGES, 0, 4 * PAGE, HostAddress(memory, 0))
    with pytest.raises(KvmError, match="KVM_CLEAR_DIRTY_LOG") as caught:
        vm.clear_dirty_log(0, 1, 4, bytes(1))
    assert caught.value.errno == errno.EINVAL


def test_enable_cap(vm: Vm) -> None:
    vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 1)
    with pytest.raises(KvmError, match=r"KVM_ENABLE_CAP\(cap=0xa8, flags=0x0, args=0x00000001"):
        vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 0x1000000)


def test_create_guest_memfd(vm: Vm) -> None:
    if not vm.check_extension(Cap.GUEST_MEMFD):
        pytest.skip("needs KVM_CAP_GUEST_MEMFD")
    os.close(vm.create_guest_memfd(PAGE))
    with pytest.raises(KvmError, match=r"KVM_CREATE_GUEST_MEMFD\(size=0x1, flags=0x0\): EINVAL"):
        vm.create_guest_memfd(1)


def test_addresses_of_internal_slots_and_irqchip(kvm: Kvm, vm: Vm) -> None:
    vm.set_identity_map_addr(0xFEFFC000)
    vm.set_tss_addr(0xFEFFD000)
    vm.create_irqchip()
    with pytest.raises(KvmError, match=r"KVM_CREATE_IRQCHIP.*EEXIST"):
        vm.create_irqchip()


def test_every_ioctl_is_issued_with_its_own_number(vm: Vm) -> None:
    vcpu = vm.create_vcpu(0)
    events = raw.new("struct kvm_vcpu_events *")
    raw.ioctl(vcpu.fd, Ioctl.GET_VCPU_EVENTS, events)
    raw.ioctl(vcpu.fd, Ioctl.SET_VCPU_EVENTS, events)
    state = raw.new("struct kvm_mp_state *")
    raw.ioctl(vcpu.fd, Ioctl.GET_MP_STATE, state)
    assert state.mp_state == 0
    raw.ioctl(vcpu.fd, Ioctl.SET_MP_STATE, state)
    with pytest.raises(KvmError) as caught:
        raw.ioctl(vm.fd, Ioctl.RESET_DIRTY_RINGS)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("bits", "is_possible"), [(31, False), (32, True), (52, True), (255, False)]
)
def test_a_processor_of_impossible_addresses_is_a_wrong_answer(
    monkeypatch: pytest.MonkeyPatch, bits: int, is_possible: bool
) -> None:
    with Kvm.open() as kvm:
        lie = kvm.cpuid_with_gpa_bits(bits)
        monkeypatch.setattr(kvm, "supported_cpuid", lambda: lie)
        if is_possible:
            assert kvm.supported_gpa_bits() == bits
        else:
            with pytest.raises(WrongAnswerError, match=f"{bits} bits of a gpa in leaf 0x80000008"):
                kvm.supported_gpa_bits()


@pytest.mark.parametrize("change", [Vm.set_user_memory_region, IN_PYTHON])
def test_what_a_slot_pins_is_the_same_with_and_without_the_shortcut(
    change: Callable[..., None], kvm: Kvm, memory: HostMapping
) -> None:
    slot, here = 300, HostAddress(memory, 0)  # So large a number is an object of its own.
    with kvm.create_vm() as vm:
        before = sys.getrefcount(slot), sys.getrefcount(here), sys.getrefcount(memory)
        for _ in range(3):
            change(vm, slot, 0, 0x1000, 0x1000, here)
            change(vm, slot, 0, 0x2000, 0x1000, here.hva)  # A plain number does not unpin.
            assert memory.in_use
            with pytest.raises(KvmError, match="EINVAL"):
                change(vm, slot, 0, 0x1001, 0x1000, here)
            assert memory.in_use
            change(vm, slot, 0, 0, 0, 0)
            assert not memory.in_use
        change(vm, slot, 0, 0x1000, 0x1000, here.hva)
        assert not memory.in_use
        change(vm, slot, 0, 0, 0, here)
        assert not memory.in_use
    after = sys.getrefcount(slot), sys.getrefcount(here), sys.getrefcount(memory)
    assert after == before
