"""KVM_RUN that is EAGAIN: for want of a process it is the host's, else the kernel's answer."""

import errno
import threading
from collections.abc import Callable

import pytest

from kvm_abi.raw import KvmError
from kvm_abi.uapi import Ioctl
from vmm.execution.processes import FirstRun, check_processes
from vmm.scenario.endings import is_short, of_the_host

EAGAIN = KvmError(errno.EAGAIN, Ioctl.RUN, None, 0)


def fail(*_: object) -> None:
    raise EAGAIN


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_without_a_process_it_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(BlockingIOError, match="no process can be started") as caught:
        check_processes(EAGAIN, fail)
    assert is_short(caught.value)
    assert of_the_host(caught.value).endswith("(ulimit -u, pids.max)")


def test_what_works_a_moment_later_was_the_hosts() -> None:
    with pytest.raises(BlockingIOError):
        check_processes(EAGAIN, lambda: None)


def test_where_processes_can_be_started_it_is_the_kernels_answer() -> None:
    check_processes(EAGAIN, fail)


@pytest.mark.parametrize(
    "error",
    [KvmError(errno.EFAULT, Ioctl.RUN, None, 0), KvmError(errno.EAGAIN, Ioctl.CREATE_VM, None, 0)],
)
def test_nothing_else_is_looked_at(error: KvmError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    repeated: list[int] = []
    again: Callable[[], object] = lambda: repeated.append(1)  # noqa: E731
    check_processes(error, again)
    assert repeated == []


def test_a_thread_that_python_cannot_start_is_the_hosts() -> None:
    assert is_short(RuntimeError("can't start new thread"))
    assert not is_short(RuntimeError("a mistake"))


def test_only_the_first_run_of_a_vm_needs_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    first = FirstRun()
    with pytest.raises(BlockingIOError):
        first.check(EAGAIN, fail)
    first.is_over = True
    first.check(EAGAIN, fail)


def test_what_kvm_answers_is_no_shortage_of_our_own_calls() -> None:
    for number in (errno.EAGAIN, errno.EIO, errno.ENOSPC, errno.EPERM):
        assert is_short(OSError(number, "of ours"))
        assert not is_short(KvmError(number, Ioctl.RUN, None, 0))
    assert is_short(KvmError(errno.ENOMEM, Ioctl.RUN, None, 0))
