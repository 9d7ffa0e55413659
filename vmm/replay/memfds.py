"""The guest_memfds of a trace: those it shows being made, and those that its calls imply.

A descriptor that the trace does not show being opened is taken for a guest_memfd that is large
enough, unless the kernel said EBADF.
"""

import errno
from collections.abc import Iterator

from kvm_abi.uapi import VmType
from vmm.replay.processes import MAX_FILES
from vmm.replay.steps import Step
from vmm.replay.trace import OTHER_FILE, Line, Region, Trace, TracedVm, VmCall
from vmm.scenario.history import Done
from vmm.scenario.operations import (
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    CloseGuestMemfd,
    CreateGuestMemfd,
    NewVm,
    SetMemoryAttributes,
)

CLOSED, NONE = "a closed descriptor", "no descriptor"
"""The names for a descriptor that is not open, since the kernel says so, and for a negative one."""

_MOST_PAGES = 1 << 50
_SNP, _TDX = 4, 5  # KVM_X86_SNP_VM, KVM_X86_TDX_VM
_PRIVATE = (int(VmType.SW_PROTECTED_VM), _SNP, _TDX)


def is_private(vm: TracedVm) -> bool:
    """Whether a VM is of a type with private memory."""
    return vm.vm_type in _PRIVATE


def needs_private_vm(vm: TracedVm) -> bool:
    """Whether a VM can be replayed only by one of type KVM_X86_SW_PROTECTED_VM."""
    return is_private(vm) and (vm.vm_type == VmType.SW_PROTECTED_VM or _has_private_memory(vm))


def _has_private_memory(vm: TracedVm) -> bool:
    return any(
        call.flags & GUEST_MEMFD
        if isinstance(call, Region)
        else isinstance(call, VmCall)
        and isinstance(call.operation, CreateGuestMemfd | SetMemoryAttributes)
        for call in vm.calls
    )


def memfd_name(call: Region) -> str:
    """Return what the scenario calls the file of a call with GUEST_MEMFD."""
    if call.memfd:
        return call.memfd
    if call.guest_memfd < 0:
        return NONE
    return CLOSED if call.errno == errno.EBADF else f"descriptor {call.guest_memfd}"


def is_known(name: str) -> bool:
    """Whether the trace shows what a descriptor is."""
    return name != CLOSED and not name.startswith("descriptor ")


class Memfds:
    """Yields the steps that make guest_memfds which the VM's own calls have not made."""

    def __init__(self, trace: Trace, vm: TracedVm) -> None:
        self._vm = vm
        self._ends: dict[str, int] = {}
        """How far slots reach into files that the trace does not show being made."""

        self._made: set[str] = set()
        used: dict[str, None] = {}
        for call in vm.calls:
            if isinstance(call, Region) and call.flags & GUEST_MEMFD:
                if call.memfd:
                    used[call.memfd] = None
                elif len(self._ends) < MAX_FILES:
                    self._note(call)
            elif isinstance(call, VmCall) and isinstance(call.operation, CreateGuestMemfd):
                self._made.add(call.operation.name)
        foreign = (name for name in used if name not in self._made)
        self._foreign = [trace.memfds[name] for name in foreign if name in trace.memfds]
        self._made.update(op.name for op in self._foreign)

    def of_other_vms(self) -> Iterator[Step]:
        """Make the guest_memfds that another VM has made, and leave that one."""
        if not self._foreign:
            return
        line = Line(self._vm.line, self._vm.line)
        for op in self._foreign:
            yield Step(line, op, Done())
        yield Step(line, NewVm(), Done())

    def before(self, call: Region) -> Iterator[Step]:
        """Make a guest_memfd before its first use, as large as its largest use."""
        name = memfd_name(call) if call.flags & GUEST_MEMFD else OTHER_FILE
        if name == OTHER_FILE or name in self._made:
            return
        self._made.add(name)
        op = CreateGuestMemfd(name, size=self._size(name))
        yield Step(call.line, op, Done())
        if name in (CLOSED, NONE):
            yield Step(call.line, CloseGuestMemfd(name), Done())

    def _note(self, call: Region) -> None:
        name = memfd_name(call)
        end = call.guest_memfd_offset + call.memory_size
        self._ends[name] = max(end, self._ends.get(name, 0))

    def _size(self, name: str) -> int:
        pages = -(-self._ends.get(name, 0) // PAGE_SIZE_BYTES)
        return max(1, min(pages, _MOST_PAGES)) * PAGE_SIZE_BYTES
