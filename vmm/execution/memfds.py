"""The guest_memfds of a scenario as open files, which may outlive their VM."""

import os

from kvm_abi import mman, raw
from kvm_abi.raw import KvmError
from vmm.execution.hostmemory import HostMemory
from vmm.kvm.vm import Vm
from vmm.scenario.history import AnyOutcome, Done, Refused
from vmm.scenario.operations import (
    MEMFD_INIT_SHARED,
    CloseGuestMemfd,
    CreateGuestMemfd,
    MapGuestMemfd,
    PunchGuestMemfd,
    ResizeGuestMemfd,
    SetUserMemoryRegion2,
)

_NOT_OPEN = 1 << 30
"""A number that no open file has: the limit of a process is far below it."""


class MemfdFiles:
    """The open files, by their names in the scenario."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._numbers: dict[str, int] = {}
        self._shared: set[str] = set()

    @property
    def are_open(self) -> bool:
        """Whether one is open, and so holds the VM that made it."""
        return bool(self._numbers)

    def close_all(self) -> None:
        """Close all open files."""
        for number in self._numbers.values():
            raw.close_kvm_file("a guest_memfd", number)
        self._numbers.clear()

    def create(self, vm: Vm, op: CreateGuestMemfd) -> AnyOutcome:
        """Issue KVM_CREATE_GUEST_MEMFD."""
        try:
            self._numbers[op.name] = vm.create_guest_memfd(op.size, op.flags)
        except KvmError as error:
            return Refused(error.errno or 0)
        if op.flags & MEMFD_INIT_SHARED:
            self._shared.add(op.name)
        return Done()

    def close(self, op: CloseGuestMemfd) -> AnyOutcome:
        """Call close(2)."""
        try:
            os.close(self._numbers.pop(op.name, _NOT_OPEN))
        except OSError as error:
            return Refused(error.errno or 0)
        return Done()

    def map(self, op: MapGuestMemfd) -> AnyOutcome:
        """Call mmap(2) over the mapping that the scenario declares for it."""
        number = self._numbers.get(op.name, _NOT_OPEN)
        try:
            self._memory.show(
                op.mapping,
                number,
                private=op.sharing == "private",
                writable=op.name in self._shared,
            )
        except OSError as error:
            return Refused(error.errno or 0)
        return Done()

    def punch(self, op: PunchGuestMemfd) -> AnyOutcome:
        """Call fallocate(2). Raises `OSError` if the host denies any such call."""
        number = self._numbers.get(op.name, _NOT_OPEN)
        try:
            mman.fallocate(number, op.mode, op.offset, op.size)
        except OSError as error:
            if mman.is_fallocate_filtered(error.errno or 0):
                raise  # It never reached the file.
            return Refused(error.errno or 0)
        return Done()

    def resize(self, op: ResizeGuestMemfd) -> AnyOutcome:
        """Call ftruncate(2)."""
        try:
            os.ftruncate(self._numbers.get(op.name, _NOT_OPEN), op.size)
        except OSError as error:
            return Refused(error.errno or 0)
        return Done()

    def number(self, op: SetUserMemoryRegion2) -> int:
        """Return the number of the file that a call names, open or not."""
        if op.guest_memfd == -1:
            return 0xFFFF_FFFF
        memfd = self._memory.memfd(op.guest_memfd)
        return self._numbers.get(op.guest_memfd, _NOT_OPEN) if memfd is None else memfd
