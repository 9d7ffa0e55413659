"""What a kernel offers, it has to take: a VM that is played refuses some of it."""

import errno
from contextlib import nullcontext
from typing import Any

import pytest

from kvm_abi.raw import KvmError
from kvm_abi.uapi import Cap
from vmm.execution.probe.offers import check_offers


class Played:
    """A kernel, and its VMs, that offer what is given, and take no more than ``most``."""

    def __init__(self, most: int, **offered: int) -> None:
        self._most = most
        self._offered = {Cap[name]: answer for name, answer in offered.items()}
        self.taken: list[int] = []

    def check_extension(self, cap: Cap) -> int:
        return self._offered.get(cap, 0)

    def create_vm(self, _type: int = 0) -> Any:
        return nullcontext(self)

    def enable_cap(self, cap: Cap, argument: int) -> None:
        if argument > self._most:
            raise KvmError(errno.EINVAL, "KVM_ENABLE_CAP", None, f"{cap.name}, {argument:#x}")
        self.taken.append(argument)

    def set_memory_attributes(self, _gpa: int, _size_bytes: int, attributes: int) -> None:
        self.enable_cap(Cap.MEMORY_ATTRIBUTES, attributes)


@pytest.mark.parametrize(
    ("cap", "most"),
    [("DIRTY_LOG_RING", 0x10000), ("MANUAL_DIRTY_LOG_PROTECT2", 3), ("MEMORY_ATTRIBUTES", 8)],
)
def test_what_is_offered_is_taken_whole_or_the_kernel_is_wrong(cap: str, most: int) -> None:
    good: Any = Played(most, **{cap: most})
    check_offers(good)
    assert good.taken == [most]
    bad: Any = Played(most, **{cap: most + 1})
    with pytest.raises(KvmError, match=cap):
        check_offers(bad)
