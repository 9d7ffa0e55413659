"""A forked child that shares memory with this process, and says what it sees change of it."""

import os
from collections.abc import Iterable

import msgspec

from kvm_abi import raw
from vmm.host.child import fork
from vmm.kvm.memory import HostMapping
from vmm.kvm.sharedmemory import shared_mappings
from vmm.scenario.history import HostChange
from vmm.scenario.operations import PAGE_SIZE_BYTES

_KVM_FILE = "anon_inode:kvm"
_FAILED = 70

Page = tuple[str, HostMapping, int]
"""A mapping by name and itself, and the offset of a page in it."""


class ForkedChild:
    """Lives until `end`. It has let go of every VM of the parent's."""

    def __init__(self, pages: Iterable[Page]) -> None:
        """Fork; ``pages`` are those that the child has to itself from now on."""
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
        """Let the child look once more, and end; return what has changed for it."""
        os.close(self._tell)
        with open(self._answer, "rb") as pipe:
            said = pipe.read()
        os.waitpid(self._pid, 0)
        return msgspec.json.decode(said, type=tuple[HostChange, ...])


def _live(pages: list[Page], told: int, ready: int, say: int) -> None:
    """What the child does: it never returns."""
    status = _FAILED
    try:
        _let_go({told, ready, say})
        before = [memory.read(offset, PAGE_SIZE_BYTES) for _, memory, offset in pages]
        os.write(ready, b"1")
        os.read(told, 1)
        changes = tuple(_changes(pages, before))
        with open(say, "wb") as pipe:
            pipe.write(msgspec.json.encode(changes))
        status = 0
    finally:
        os._exit(status)


def _let_go(kept: set[int]) -> None:
    """Close all files but some, and unmap what is mapped of a vCPU."""
    for start, end, name in shared_mappings():
        if _KVM_FILE in name:
            raw.unmap_memory(start, end - start)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # That of the listing itself.


def _changes(pages: list[Page], before: list[bytes]) -> Iterable[HostChange]:
    for (name, memory, offset), data in zip(pages, before, strict=True):
        for at, length in memory.differences(data, PAGE_SIZE_BYTES, offset):
            yield HostChange(name, offset + at, memory.read(offset + at, length))
