"""A VM with its vCPUs and its guest: operations become system calls and guest runs."""

import os
from collections.abc import Callable, Sequence

from guests import image
from kvm_abi.raw import KvmError
from vmm.memory import HostAddress, HostMapping
from vmm.memslots.guestcpu import GuestCpu
from vmm.memslots.history import AnyOutcome, DirtyPages, Done, Refused
from vmm.memslots.hostmemory import HostMemory
from vmm.memslots.memfdfiles import MemfdFiles
from vmm.memslots.operations import (
    Execute,
    GetDirtyLog,
    Scenario,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Sweep,
    Touch,
    pages_of,
)
from vmm.memslots.plan import guest_slot
from vmm.memslots.regions import MAX_PAGES
from vmm.system import Kvm

_CHILD_FAILED = 255


class Machine:
    """One VM of a scenario. Close it before the memory that it uses."""

    def __init__(
        self,
        kvm: Kvm,
        scenario: Scenario,
        memory: HostMemory,
        guest: HostMapping,
        files: MemfdFiles,
    ) -> None:
        self._memory = memory
        self._files = files
        self._guest = guest
        self._guest_slot = guest_slot(scenario)
        self._log_bytes = _log_bytes(scenario)
        guest.write(0, image.code())
        self.vm = kvm.create_vm()
        try:
            self._cpus = [
                GuestCpu(self.vm.create_vcpu(index), scenario.guest.gpa, guest.view())
                for index in range(scenario.vcpus)
            ]
        except BaseException:
            self.vm.close()
            raise

    def close(self) -> None:
        """Close the VM and its vCPUs."""
        self.vm.close()

    def set_region(self, op: SetUserMemoryRegion) -> AnyOutcome:
        """Issue KVM_SET_USER_MEMORY_REGION or ..._REGION2."""
        if op.caller == "forked-child":
            return _in_forked_child(lambda: self._set_region(op))
        return self._set_region(op)

    def touch(self, vcpu: int, touches: Sequence[Touch]) -> list[AnyOutcome]:
        """Let a vCPU make some touches in one KVM_RUN (and one more for each exit)."""
        return self._cpus[vcpu].touch(touches)

    def sweep(self, op: Sweep) -> AnyOutcome:
        """Let a vCPU execute a string instruction."""
        return self._cpus[op.vcpu].sweep(op)

    def execute(self, op: Execute) -> AnyOutcome:
        """Let a vCPU execute the code of a page."""
        return self._cpus[op.vcpu].execute(op)

    def get_dirty_log(self, op: GetDirtyLog) -> AnyOutcome:
        """Issue KVM_GET_DIRTY_LOG with a bitmap that is larger than any log of the scenario."""
        try:
            if op.bitmap == "unwritable":
                self.vm.get_dirty_log_to(op.slot, self._memory.inaccessible)
                return DirtyPages(())
            return DirtyPages(_bits(self.vm.get_dirty_log(op.slot, self._log_bytes * 8)))
        except KvmError as error:
            return Refused(error.errno or 0)

    def _set_region(self, op: SetUserMemoryRegion) -> AnyOutcome:
        try:
            if op.argument == "unreadable":
                self.vm.set_user_memory_region_from(self._memory.inaccessible)
            elif isinstance(op, SetUserMemoryRegion2):
                self.vm.set_user_memory_region2(
                    op.slot,
                    op.flags,
                    op.guest_phys_addr,
                    op.memory_size,
                    self._address(op),
                    op.guest_memfd_offset,
                    self._files.number(op),
                )
            else:
                self.vm.set_user_memory_region(
                    op.slot, op.flags, op.guest_phys_addr, op.memory_size, self._address(op)
                )
        except KvmError as error:
            return Refused(error.errno or 0)
        return Done()

    def _address(self, op: SetUserMemoryRegion) -> HostAddress | int:
        if op == self._guest_slot:
            return HostAddress(self._guest, 0)
        return self._memory.address(op.userspace_addr)


def _log_bytes(scenario: Scenario) -> int:
    """Return the size of a bitmap that holds the log of any slot that the scenario names."""
    sizes = [
        pages_of(op.memory_size)
        for op in scenario.operations
        if isinstance(op, SetUserMemoryRegion) and pages_of(op.memory_size) <= MAX_PAGES
    ]
    return (max(sizes, default=0) + 2 * 64) // 8


def _bits(bitmap: bytes) -> tuple[int, ...]:
    """Return the numbers of the bits that are set, ascending."""
    number = int.from_bytes(bitmap, "little")
    bits: list[int] = []
    while number:
        lowest = number & -number
        bits.append(lowest.bit_length() - 1)
        number ^= lowest
    return tuple(bits)


def _in_forked_child(call: Callable[[], AnyOutcome]) -> AnyOutcome:
    """Let a forked child, whose memory is another mm, make a call, and return its outcome."""
    child = os.fork()
    if child == 0:
        try:
            outcome = call()
            os._exit(outcome.errno if isinstance(outcome, Refused) else 0)
        except BaseException:
            os._exit(_CHILD_FAILED)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0 or status == _CHILD_FAILED:
        raise RuntimeError(f"the forked child failed: exit status {status}")
    return Refused(status) if status else Done()
