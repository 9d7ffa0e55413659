"""Checks that a vCPU stops where it has to: at hlt, and before the guest if it is asked to."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from kvm_abi.raw import MOST_INTERRUPTIONS, KvmError, WrongAnswerError
from kvm_abi.uapi import Cap
from vmm.execution.processes import check_processes
from vmm.kvm.exits import Hlt, VcpuExit
from vmm.kvm.exitwords import in_words
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.scenario.operations import PAGE_SIZE_BYTES

_HLT = b"\xf4"


def check_stops(kvm: Kvm) -> None:
    """Run a vCPU whose first instruction is hlt, asked to exit at once and then not.

    Raises `KvmError`, `WrongAnswerError` if it stops elsewhere, and `OSError` if the host lacks
    what it takes to run.
    """
    with _begun(kvm, _HLT) as vcpu:
        if kvm.check_extension(Cap.IMMEDIATE_EXIT):
            _check_immediate_exit(vcpu)
        stop = _first_stop(vcpu)
    if stop != Hlt():
        raise WrongAnswerError("KVM_RUN", f"{in_words(stop)}; the guest executes hlt")


def first_stop(kvm: Kvm, code: bytes) -> VcpuExit:
    """Return where a vCPU stops that executes ``code`` in real mode. Raises as `check_stops`."""
    with _begun(kvm, code) as vcpu:
        return _first_stop(vcpu)


@contextmanager
def _begun(kvm: Kvm, code: bytes) -> Iterator[Vcpu]:
    with HostMapping.anonymous(PAGE_SIZE_BYTES) as memory, kvm.create_vm() as vm:
        memory.write(0, code)
        vm.set_user_memory_region(0, 0, 0, PAGE_SIZE_BYTES, HostAddress(memory, 0))
        vcpu = vm.create_vcpu(0)
        vcpu.enter_big_real_mode(0, 0)
        yield vcpu


def _first_stop(vcpu: Vcpu) -> VcpuExit:
    try:
        return _run(vcpu)
    except KvmError as error:
        check_processes(error, vcpu.run)
        raise


def _check_immediate_exit(vcpu: Vcpu) -> None:
    vcpu.request_immediate_exit()
    try:
        stop = in_words(vcpu.run())
    except KvmError as error:
        if error.errno != errno.EINTR:
            raise
        stop = ""
    finally:
        vcpu.request_immediate_exit(False)
    if stop:
        raise WrongAnswerError("KVM_RUN", f"{stop}, and not EINTR, with immediate_exit=1")
    if vcpu.get_regs().rip:
        raise WrongAnswerError("KVM_RUN", "EINTR after the guest ran, with immediate_exit=1")


def _run(vcpu: Vcpu) -> VcpuExit:
    """Run it on where a signal for this process interrupts it."""
    for _ in range(MOST_INTERRUPTIONS):
        try:
            return vcpu.run()
        except KvmError as error:
            if error.errno != errno.EINTR:
                raise
    return vcpu.run()
