"""Checks that what KVM_CHECK_EXTENSION denies, or limits, is not there: the mirror of `offers`.

A denied capability makes scenarios skip, so that a kernel that only says 0 would be checked less
and still pass. Calls that are refused without their capability have scenarios; here is the rest.
"""

from collections.abc import Callable
from functools import partial

from guests import image
from guests.windows import Windows
from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import IDENTITY_MAP_GPA, USUAL_TSS_GPA, Cap
from vmm.execution.guestcpu import GuestCpu
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.kvm.vm import Vm
from vmm.scenario.endings import KERNEL_SHORT
from vmm.scenario.history import AnyOutcome, Touched
from vmm.scenario.operations import GUEST_SIZE_BYTES, PAGE_SIZE_BYTES, Touch

_GUEST_GPA = 0x10000
_FEW_VCPUS = 16
_MASK_BITS = 64
_ONE, _TWO = 0x1111, 0x2222
_LATER_SLOTS = (
    (Cap.DESTROY_MEMORY_REGION_WORKS, "a slot that is deleted is gone"),
    (Cap.JOIN_MEMORY_REGIONS_WORKS, "one slot takes the place of two"),
    (Cap.SYNC_MMU, "a slot follows its host mapping"),
)


def check_denials(kvm: Kvm) -> None:
    """Try what the kernel denies, and vCPUs beyond the limits that it gives.

    Raises `WrongAnswerError` for what works even so.
    """
    with kvm.create_vm() as vm:
        _check_options(vm)
        _check_calls(vm)
        _check_vcpu_limits(vm)
        denied = [each for each in _LATER_SLOTS if not vm.check_extension(each[0])]
    works = _working(kvm) if denied else frozenset[Cap]()
    for cap, what in denied:
        if cap in works:
            raise _wrong(cap, f"0, and {what}")


def _check_options(vm: Vm) -> None:
    """Check that no more is taken than is offered: another option, or a larger ring."""
    for cap, more in ((Cap.DISABLE_QUIRKS2, _other_bits), (Cap.DIRTY_LOG_RING, _twice)):
        offered = vm.check_extension(cap)
        if any(_is_taken(partial(vm.enable_cap, cap, argument)) for argument in more(offered)):
            raise _wrong(cap, f"{offered:#x}, and more is taken")


def _check_calls(vm: Vm) -> None:
    """Check that calls are refused whose capability is denied."""
    for cap, call in (
        (Cap.SET_TSS_ADDR, partial(vm.set_tss_addr, USUAL_TSS_GPA)),
        (Cap.SET_IDENTITY_MAP_ADDR, partial(vm.set_identity_map_addr, IDENTITY_MAP_GPA)),
    ):
        if not vm.check_extension(cap) and _is_taken(call):
            raise _wrong(cap, "0, and the call is taken")


def _other_bits(offered: int) -> list[int]:
    return [1 << bit for bit in range(_MASK_BITS) if not offered & 1 << bit]


def _twice(offered: int) -> list[int]:
    return [2 * offered] if offered else []


def _is_taken(call: Callable[[], object]) -> bool:
    """Whether the kernel does not refuse a call; memory and descriptors may always be short."""
    try:
        call()
    except KvmError as error:
        if error.errno in KERNEL_SHORT:
            raise
        return False
    return True


def _working(kvm: Kvm) -> frozenset[Cap]:
    """Return which of the capabilities that concern later changes of slots a kernel has."""
    with (
        HostMapping.anonymous(GUEST_SIZE_BYTES) as guest,
        HostMapping.anonymous(2 * PAGE_SIZE_BYTES) as pages,
        kvm.create_vm() as vm,
    ):
        guest.write(0, image.code())
        for page, value in enumerate((_ONE, _TWO)):
            pages.write(page * PAGE_SIZE_BYTES, value.to_bytes(2, "little"))
        vm.set_user_memory_region(0, 0, _GUEST_GPA, GUEST_SIZE_BYTES, HostAddress(guest, 0))
        windows = Windows(guest.view(), _GUEST_GPA)
        cpu = GuestCpu(vm.create_vcpu(0), _GUEST_GPA, guest.view(), windows, lambda: False)
        for page in (0, 1):
            _create(vm, pages, page, 1)
        before = cpu.touch([Touch(0), Touch(PAGE_SIZE_BYTES)])
        for page in (0, 1):
            vm.set_user_memory_region(page + 1, 0, 0, 0, 0)
        between = cpu.touch([Touch(0), Touch(PAGE_SIZE_BYTES)])
        _create(vm, pages, 0, 2)
        joined = cpu.touch([Touch(0), Touch(PAGE_SIZE_BYTES)])
        pages.discard(PAGE_SIZE_BYTES, PAGE_SIZE_BYTES)
        dropped = cpu.touch([Touch(PAGE_SIZE_BYTES)])
    held = [Touched(_ONE), Touched(_TWO)]
    found = {
        Cap.DESTROY_MEMORY_REGION_WORKS: before == held and all(map(_exits, between)),
        Cap.JOIN_MEMORY_REGIONS_WORKS: joined == held,
        Cap.SYNC_MMU: joined == held and dropped == [Touched(0)],
    }
    return frozenset(cap for cap, is_so in found.items() if is_so)


def _exits(outcome: AnyOutcome) -> bool:
    return isinstance(outcome, Touched) and bool(outcome.mmio)


def _create(vm: Vm, pages: HostMapping, page: int, count: int) -> None:
    place = page * PAGE_SIZE_BYTES
    size_bytes = count * PAGE_SIZE_BYTES
    vm.set_user_memory_region(page + 1, 0, place, size_bytes, HostAddress(pages, place))


def _check_vcpu_limits(vm: Vm) -> None:
    """Check the three limits against each other, and that a vCPU beyond them is refused.

    More than a few vCPUs take too long to create.
    """
    usual = vm.check_extension(Cap.NR_VCPUS)
    most = vm.check_extension(Cap.MAX_VCPUS) or usual
    ids = vm.check_extension(Cap.MAX_VCPU_ID) or most
    if most < usual:
        raise _wrong(Cap.MAX_VCPUS, f"{most}, and KVM_CAP_NR_VCPUS is {usual}")
    if ids < most:
        raise _wrong(Cap.MAX_VCPU_ID, f"{ids}, and KVM_CAP_MAX_VCPUS is {most}")
    if _is_taken(partial(vm.create_vcpu, ids)):
        raise _wrong(Cap.MAX_VCPU_ID, f"{ids}, and a vCPU may have that id")
    several = range(most + 1) if most < _FEW_VCPUS else ()
    if several and all(_is_taken(partial(vm.create_vcpu, number)) for number in several):
        raise _wrong(Cap.MAX_VCPUS, f"{most}, and there may be one more")


def _wrong(cap: Cap, answer: str) -> WrongAnswerError:
    return WrongAnswerError("KVM_CHECK_EXTENSION", answer, f"KVM_CAP_{cap.name}")
