"""The guest_memfds of a scenario are files of KVM, which never refuses to close one."""

import errno
import os
from typing import cast

import pytest

from kvm_abi.raw import KvmError
from vmm.execution.hostmemory import HostMemory
from vmm.execution.memfds import MemfdFiles
from vmm.kvm.vm import Vm
from vmm.scenario.operations import CreateGuestMemfd


class MakesMemfds:
    def create_guest_memfd(self, size: int, flags: int) -> int:
        return os.memfd_create("a")


def test_a_close_that_the_kernel_refuses_is_an_answer_of_kvms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = MemfdFiles(cast(HostMemory, None))
    files.create(cast(Vm, MakesMemfds()), CreateGuestMemfd("a", 0x1000))
    close = os.close

    def refuse(number: int) -> None:
        close(number)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", refuse)
        with pytest.raises(KvmError, match=r"close\(a guest_memfd\): EIO"):
            files.close_all()
