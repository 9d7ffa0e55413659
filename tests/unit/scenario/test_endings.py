"""Why a history ends before its scenario does."""

import errno
import os
from collections.abc import Callable

import pytest

from kvm_abi.mman import checked_result
from kvm_abi.raw import KvmError
from vmm.scenario.endings import is_short, of_the_host, what_is_short, why_failed


def test_what_has_no_words_of_its_own_gets_some() -> None:
    assert of_the_host(MemoryError()) == "the host: out of memory"


def test_what_ran_out_is_told_with_the_file_and_the_limit() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert of_the_host(full) == "the host: No space left on device"
    full = OSError(errno.EFBIG, "File too large", "/tmp/r.json")
    assert of_the_host(full) == "the host: /tmp/r.json: File too large (ulimit -f)"
    full = OSError(errno.ENOSPC, "No space left on device", "/boot/vmlinuz", None, "/cache/kernel")
    assert of_the_host(full) == "the host: /cache/kernel: No space left on device"
    full = OSError(errno.EMFILE, "Too many open files")
    assert of_the_host(full) == "the host: Too many open files (ulimit -n)"


@pytest.mark.parametrize(
    "number", [errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT]
)
def test_a_file_system_that_takes_nothing_more_is_the_hosts(number: int) -> None:
    error = OSError(number, os.strerror(number), "h.jsonl")
    assert why_failed(error) == f"the host: h.jsonl: {os.strerror(number)}"


def test_only_what_runs_out_is_the_hosts() -> None:
    assert is_short(MemoryError())
    assert is_short(OSError(errno.EMFILE, ""))
    assert is_short(PermissionError(errno.EACCES, "Permission denied", "/dev/kvm"))
    assert is_short(PermissionError(errno.EPERM, "Operation not permitted"))
    assert is_short(OSError(errno.ENOSYS, "Function not implemented"))
    assert not is_short(KvmError(errno.EPERM, "KVM_RUN", None, ""))
    assert not is_short(KvmError(errno.ENOSYS, "KVM_RUN", None, ""))
    assert not is_short(EOFError())
    assert not is_short(OSError(errno.EINVAL, ""))
    assert not is_short(ValueError())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: os.close(-1), "close: Bad file descriptor"),
        (lambda: os.open("/no/such/place", 0), "/no/such/place: No such file or directory"),
        (lambda: checked_result("madvise", -errno.EPERM), "madvise: Operation not permitted"),
    ],
)
def test_an_error_without_a_name_has_that_of_the_call(
    call: Callable[[], object], said: str
) -> None:
    with pytest.raises(OSError) as error:  # noqa: PT011
        call()
    assert what_is_short(error.value) == said


def test_a_part_of_python_that_does_not_say_why_it_failed_ran_out_of_memory() -> None:
    lost = SystemError("<built-in function compile> returned NULL without setting an exception")
    assert is_short(lost)
    assert of_the_host(lost).startswith("the host: out of memory, as it seems: ")
    assert not is_short(SystemError("bad argument to internal function"))
