"""A forked child that shares memory with this process, and reports what it sees change."""

import errno
import os
from collections.abc import Iterable

import msgspec

from kvm_abi import mman
from vmm.execution.leftovers import KVM_FILE
from vmm.host.child import FAILED, fork
from vmm.kvm.memory import HostMapping
from vmm.kvm.sharedmemory import shared_mappings
from vmm.scenario.history import HostChange
from vmm.scenario.operations import PAGE_SIZE_BYTES

Page = tuple[str, HostMapping, int]
"""The name of a mapping, the mapping, and the offset of a page in it."""


class ForkedChild:
    """A child that lives until `end`, and holds no VM of the parent's."""

    def __init__(self, pages: Iterable[Page]) -> None:
        """Fork; the child watches ``pages``, which are copy-on-write from now on."""
        watched = list(pages)
        ready, tell_ready = os.pipe()
        told, tell = os.pipe()
        answer, say = os.pipe()
        self._pid = fork()
        if self._pid == 0:
            _live(watched, told, tell_ready, say)
        for mine in (tell_ready, told, say):
            os.close(mine)
        self._tell, self._answer = tell, answer
        with open(ready, "rb") as pipe:
            pipe.read(1)

    def end(self) -> tuple[HostChange, ...]:
        """Let the child look once more, and exit; return what has changed for it.

        Raises the `OSError` that it met, and EIO if something killed it.
        """
        os.close(self._tell)
        with open(self._answer, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(self._pid, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            raise OSError(errno.EIO, f"signal {number} has ended the forked child")
        if not said:
            raise RuntimeError(f"the forked child failed: exit status {status >> 8}")
        met = msgspec.json.decode(said, type=tuple[HostChange, ...] | int)
        if isinstance(met, int):
            name = errno.errorcode.get(met, str(met))
            raise OSError(met, f"{name} in a forked child: {os.strerror(met)}")
        return met


def _live(pages: list[Page], told: int, ready: int, say: int) -> None:
    """Run the child; never returns."""
    status = FAILED
    try:
        with open(say, "wb") as pipe:
            pipe.write(msgspec.json.encode(_seen(pages, told, ready, say)))
        status = 0
    finally:
        os._exit(status)


def _seen(pages: list[Page], told: int, ready: int, say: int) -> tuple[HostChange, ...] | int:
    """Return what has changed by the time the parent asks, or the errno of a failure."""
    try:
        _let_go({told, ready, say})
        before = [memory.read(offset, PAGE_SIZE_BYTES) for _, memory, offset in pages]
        os.write(ready, b"1")
        os.read(told, 1)
        return tuple(_changes(pages, before))
    except OSError as error:
        return error.errno or errno.EIO


def _let_go(kept: set[int]) -> None:
    """Close all files but those ``kept``, and unmap the shared pages of vCPUs."""
    for start, end, name in shared_mappings():
        if KVM_FILE in name:
            mman.unmap_memory(start, end - start)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # The descriptor of the listing itself.


def _changes(pages: list[Page], before: list[bytes]) -> Iterable[HostChange]:
    for (name, memory, offset), data in zip(pages, before, strict=True):
        for at, length in memory.differences(data, PAGE_SIZE_BYTES, offset):
            yield HostChange(name, offset + at, memory.read(offset + at, length))
