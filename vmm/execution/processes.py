"""KVM_RUN that fails for want of a process: a limit of the host's, and no answer about a guest.

The first KVM_RUN of a VM starts a kernel thread (it splits huge pages again), which counts as one
of this user's processes (``ulimit -u``) and of this control group's (``pids.max``).
"""

import errno
import threading
from collections.abc import Callable

from kvm_abi.raw import KvmError
from kvm_abi.uapi import Ioctl

_TIMES = 3


class FirstRun:
    """What the vCPUs of one VM share: whether a KVM_RUN of one of them has returned.

    None that comes later needs a process: EAGAIN is the kernel's answer then, like any other.
    """

    def __init__(self) -> None:
        self.is_over = False

    def check(self, error: KvmError, again: Callable[[], object]) -> None:
        """Do what `check_processes` does, unless a KVM_RUN of this VM has returned before."""
        if not self.is_over:
            check_processes(error, again)


def check_processes(error: KvmError, again: Callable[[], object]) -> None:
    """Raise an OSError with EAGAIN if a KVM_RUN has failed because no process can be started.

    ``again`` repeats it: that a later one works means that others have ended meanwhile.
    """
    if error.request is not Ioctl.RUN or error.errno != errno.EAGAIN:
        return
    for _ in range(_TIMES):
        if _can_start_thread():
            try:
                again()
            except KvmError as other:
                if other.errno == errno.EAGAIN:
                    continue
        raise OSError(errno.EAGAIN, "KVM_RUN: EAGAIN, as no process can be started")


def _can_start_thread() -> bool:
    thread = threading.Thread(target=lambda: None)
    try:
        thread.start()
    except RuntimeError:
        return False
    thread.join()
    return True
