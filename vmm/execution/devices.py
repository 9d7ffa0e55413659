"""The host's calls for coalesced MMIO and ioeventfds."""

import os
from collections.abc import Callable

from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import Cap
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import Vm
from vmm.scenario.history import Done, Mmio, MmioKept, Refused
from vmm.scenario.operations import CoalesceMmio, IoEventFd, SetCoalescedRing


class Devices:
    """The eventfds of one VM, by name, and its ring of coalesced writes."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._files: dict[str, int] = {}

    def close(self) -> None:
        """Close all eventfds. The VM must be closed."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def coalesce(self, op: CoalesceMmio) -> Done | Refused:
        """Issue KVM_REGISTER_COALESCED_MMIO or KVM_UNREGISTER_COALESCED_MMIO."""
        vm = self._vm
        call = vm.register_coalesced_mmio if op.on else vm.unregister_coalesced_mmio
        return _answer(lambda: call(op.gpa, op.size, pio=op.pio))

    def ioeventfd(self, op: IoEventFd) -> Done | Refused:
        """Issue KVM_IOEVENTFD; an eventfd is created when it is first named."""
        if op.name not in self._files:
            self._files[op.name] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        file = self._files[op.name]
        return _answer(lambda: self._vm.ioeventfd(file, op.gpa, op.length, op.match, on=op.on))

    def set_ring(self, vcpu: Vcpu, op: SetCoalescedRing) -> Done:
        """Let the ring of coalesced writes go on at an index, if there is one."""
        if offset := self._vm.check_extension(Cap.COALESCED_MMIO):
            vcpu.set_coalesced_ring(offset, op.index)
        return Done()

    def collect(self, vcpu: Vcpu | None) -> MmioKept:
        """Read the coalesced writes, through any vCPU, and the counts of the eventfds."""
        offset = self._vm.check_extension(Cap.COALESCED_MMIO)
        kept = vcpu.coalesced_writes(offset) if vcpu is not None and offset else ()
        odd = next((pio for _, _, pio in kept if pio not in (0, 1)), 0)
        if odd:
            raise WrongAnswerError("KVM_RUN", f"a coalesced write with pio={odd}")
        counts = [(name, _count(file)) for name, file in sorted(self._files.items())]
        return MmioKept(
            tuple(Mmio(gpa, True, data) for gpa, data, _ in kept),
            tuple((name, count) for name, count in counts if count),
            tuple(n for n, (_, _, pio) in enumerate(kept) if pio),
        )


def _count(file: int) -> int:
    try:
        return os.eventfd_read(file)
    except BlockingIOError:
        return 0


def _answer(call: Callable[[], None]) -> Done | Refused:
    try:
        call()
    except KvmError as error:
        return Refused(error.errno or 0)
    return Done()
