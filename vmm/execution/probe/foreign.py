"""Checks that a VM and its vCPUs serve no process but the one that made the VM: all else is EIO."""

import errno
from collections.abc import Callable
from functools import partial

from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import Cap
from vmm.execution.callers import Caller
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import Vm

_Calls = dict[str, Callable[[], object]]


def check_foreign(kvm: Kvm) -> None:
    """Let a forked child make calls on a VM and on a vCPU, each of which must be EIO.

    Raises `WrongAnswerError` for the first that has another answer.
    """
    with kvm.create_vm() as vm:
        calls = _calls(vm, vm.create_vcpu(0))
        with Caller(partial(_first_not_refused, calls)) as child:
            found = child.status()
    if found < len(calls):
        answer = "something else than EIO in a forked child, whose memory is not the VM's"
        raise WrongAnswerError(list(calls)[found], answer)


def _calls(vm: Vm, vcpu: Vcpu) -> _Calls:
    return {
        "KVM_CHECK_EXTENSION": partial(vm.check_extension, Cap.USER_MEMORY),
        "KVM_SET_USER_MEMORY_REGION": partial(vm.set_user_memory_region, 0, 0, 0, 0, 0),
        "KVM_ENABLE_CAP": partial(vm.enable_cap, Cap.MANUAL_DIRTY_LOG_PROTECT2, 0),
        "KVM_GET_DIRTY_LOG": partial(vm.get_dirty_log, 0, 1),
        "KVM_CLEAR_DIRTY_LOG": partial(vm.clear_dirty_log, 0, 0, 0, b""),
        "KVM_RESET_DIRTY_RINGS": vm.reset_dirty_rings,
        "KVM_CREATE_VCPU": partial(vm.create_vcpu, 1),
        "KVM_GET_REGS": vcpu.get_regs,
        "KVM_RUN": vcpu.run,
    }


def _first_not_refused(calls: _Calls) -> int:
    """Return the index of the first call that is not EIO, or else how many there are."""
    for index, call in enumerate(calls.values()):
        try:
            call()
        except KvmError as error:
            if error.errno == errno.EIO:
                continue
        return index
    return len(calls)
