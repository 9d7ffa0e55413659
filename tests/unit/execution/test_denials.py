"""What a kernel denies must not work, and its limits hold: VMs that are played."""

import errno
from contextlib import nullcontext
from typing import Any

import pytest

from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import Cap
from vmm.execution.probe.denials import check_denials

LIMITS = {"NR_VCPUS": 2, "MAX_VCPUS": 3, "MAX_VCPU_ID": 6}
TAKES = {"SET_TSS_ADDR": 1, "SET_IDENTITY_MAP_ADDR": 1}
ALL = {
    **LIMITS,
    **TAKES,
    "SYNC_MMU": 1,
    "DESTROY_MEMORY_REGION_WORKS": 1,
    "JOIN_MEMORY_REGIONS_WORKS": 1,
    "DISABLE_QUIRKS2": 0b1011,
    "DIRTY_LOG_RING": 0x10000,
}


class Played:
    """A kernel, and its VMs, that do what ``ALL`` says, and say it but for ``says``."""

    def __init__(self, error: int = errno.EINVAL, **says: int) -> None:
        self._says = {**ALL, **says}
        self._error = error
        self._vcpus: set[int] = set()

    def check_extension(self, cap: Cap) -> int:
        return self._says.get(cap.name, 0)

    def create_vm(self) -> Any:
        self._vcpus.clear()
        return nullcontext(self)

    def create_vcpu(self, number: int) -> None:
        self._take(number < ALL["MAX_VCPU_ID"] and len(self._vcpus) < ALL["MAX_VCPUS"])
        self._vcpus.add(number)

    def set_tss_addr(self, _gpa: int) -> None:
        self._take(True)

    def set_identity_map_addr(self, _gpa: int) -> None:
        self._take(True)

    def enable_cap(self, cap: Cap, argument: int) -> None:
        is_mask = cap is Cap.DISABLE_QUIRKS2
        most = ALL[cap.name]
        self._take(not argument & ~most if is_mask else argument <= most)

    def _take(self, is_right: bool) -> None:
        if not is_right:
            raise KvmError(self._error, "KVM", None, "")


def test_a_kernel_that_does_what_it_says_passes() -> None:
    kernel: Any = Played()
    check_denials(kernel)


@pytest.mark.parametrize(
    ("says", "named"),
    [
        ({"SET_TSS_ADDR": 0}, "KVM_CAP_SET_TSS_ADDR"),
        ({"SET_IDENTITY_MAP_ADDR": 0}, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
        ({"DISABLE_QUIRKS2": 0b0011}, "KVM_CAP_DISABLE_QUIRKS2"),
        ({"DISABLE_QUIRKS2": 0}, "KVM_CAP_DISABLE_QUIRKS2"),
        ({"DIRTY_LOG_RING": 0x8000}, "KVM_CAP_DIRTY_LOG_RING"),
        ({"NR_VCPUS": 4}, "KVM_CAP_MAX_VCPUS"),
        ({"MAX_VCPUS": 2}, "KVM_CAP_MAX_VCPUS"),
        ({"MAX_VCPUS": 7}, "KVM_CAP_MAX_VCPU_ID"),
        ({"MAX_VCPU_ID": 5}, "KVM_CAP_MAX_VCPU_ID"),
    ],
)
def test_what_is_denied_and_works_is_wrong(says: dict[str, int], named: str) -> None:
    kernel: Any = Played(**says)
    with pytest.raises(WrongAnswerError, match=named):
        check_denials(kernel)


def test_a_kernel_without_memory_has_not_refused() -> None:
    kernel: Any = Played(errno.ENOMEM)
    with pytest.raises(KvmError):
        check_denials(kernel)


def test_limits_that_are_not_given_are_those_of_the_documentation() -> None:
    """Without KVM_CAP_MAX_VCPUS and KVM_CAP_MAX_VCPU_ID, the number before is the limit."""
    kernel: Any = Played(NR_VCPUS=3, MAX_VCPUS=0, MAX_VCPU_ID=6)
    check_denials(kernel)
