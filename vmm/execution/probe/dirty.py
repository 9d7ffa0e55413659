"""Finds out how a kernel tracks dirty pages, by trying."""

import errno

from guests import image
from guests.windows import Windows
from kvm_abi import mman, raw
from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import DIRTY_LOG_PAGE_OFFSET, Cap, MapFlag, MemFlag
from vmm.execution.guestcpu import GuestCpu
from vmm.execution.probe.touches import wrong_touch
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.scenario.history import Touched
from vmm.scenario.operations import GUEST_SIZE_BYTES, PAGE_SIZE_BYTES, REAL_MODE_END, Touch

_GUEST_GPA = 0x10000
_LOG_PAGES = 4096
"""More than the slot has, so that a kernel that writes beyond the bitmap's end does no harm."""


def least_ring_bytes(kvm: Kvm) -> int:
    """Return the size of the smallest dirty ring that the kernel accepts; 0 if it accepts none.

    The kernel reserves entries for what the processor may log at once, so it can be more than a
    page.
    """
    with kvm.create_vm() as vm:
        size_bytes = PAGE_SIZE_BYTES
        most = vm.check_extension(Cap.DIRTY_LOG_RING)
        while size_bytes <= most:
            try:
                vm.enable_cap(Cap.DIRTY_LOG_RING, size_bytes)
            except KvmError as error:
                if error.errno != errno.EINVAL or size_bytes * 2 > most:
                    raise  # The kernel said that a ring of this size is possible.
                size_bytes *= 2
            else:
                return size_bytes
    return 0


def check_ring_mapping(kvm: Kvm, size_bytes: int) -> None:
    """Check that a dirty ring cannot be mapped privately (kvm_vcpu_mmap).

    Raises KvmError or WrongAnswerError if it can.
    """
    what, start = "a dirty ring, privately", DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE_BYTES
    with kvm.create_vm() as vm:
        vm.enable_cap(Cap.DIRTY_LOG_RING, size_bytes)
        vcpu = vm.create_vcpu(0)
        try:
            address = raw.map_kvm_file(what, vcpu.fd, size_bytes, start, flags=MapFlag.PRIVATE)
        except KvmError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            mman.unmap_memory(address, size_bytes)
            raise WrongAnswerError(f"mmap of {what}", "success")


def reads_make_dirty(kvm: Kvm, touch_limit: int = 0) -> bool:
    """Return whether a page that the guest has only read appears in the dirty log.

    With a limit that lies beyond real mode the guest is one of 64 bits: where KVM emulates real
    mode, it reads the page itself, so that only the other guest has it mapped.
    """
    if touch_limit > REAL_MODE_END:
        return _is_dirty_once_read(kvm, REAL_MODE_END, (touch_limit - 1).bit_length())
    return _is_dirty_once_read(kvm, 0)


def _is_dirty_once_read(kvm: Kvm, gpa: int, gpa_bits: int = 0) -> bool:
    """Whether a page of a slot at ``gpa`` is. Guests of 64 bits need a CPUID, with ``gpa_bits``."""
    with (
        HostMapping.anonymous(GUEST_SIZE_BYTES) as guest,
        HostMapping.anonymous(PAGE_SIZE_BYTES) as page,
        kvm.create_vm() as vm,
    ):
        guest.write(0, image.code())
        # A page that nobody has written is the host's zero page, which is never mapped writable
        # and so never logged for a read (hva_to_pfn_slow). Scenarios write all pages first.
        page.write(0, b"1")
        vm.set_user_memory_region(0, 0, _GUEST_GPA, GUEST_SIZE_BYTES, HostAddress(guest, 0))
        flags = MemFlag.LOG_DIRTY_PAGES
        vm.set_user_memory_region(1, flags, gpa, PAGE_SIZE_BYTES, HostAddress(page, 0))
        windows = Windows(guest.view(), _GUEST_GPA)
        vcpu = vm.create_vcpu(0)
        if gpa_bits:
            vcpu.set_cpuid(kvm.cpuid_with_gpa_bits(gpa_bits))
        cpu = GuestCpu(vcpu, _GUEST_GPA, guest.view(), windows, lambda: False)
        found, expected = (
            cpu.touch([Touch(gpa)]),
            Touched(int.from_bytes(page.read(0, 4), "little")),
        )
        if found != [expected]:
            raise wrong_touch(found[0], f"the guest reads gpa {gpa:#x}, in a slot")
        log = int.from_bytes(vm.get_dirty_log(1, _LOG_PAGES), "little")
        if log > 1:
            raise WrongAnswerError("KVM_GET_DIRTY_LOG", f"bits {log:#x} of a slot of one page")
        return bool(log)
