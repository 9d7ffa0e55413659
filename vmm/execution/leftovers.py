"""What a VM leaves behind in the process that made it."""

import os
from collections.abc import Iterator

from kvm_abi import mman
from kvm_abi.uapi import MapFlag, Protection
from vmm.kvm.sharedmemory import shared_mappings

_KVM_FILE = "anon_inode:kvm"
_KERNEL_MADE = "/dev/zero (deleted)"
"""What the kernel's own mappings of internal slots (vm_mmap of shared memory) look like."""


def can_look_at_itself() -> bool:
    """Whether the process can see what it has mapped and open."""
    try:
        _traces()
    except FileNotFoundError:
        return False
    return True


class InternalMemory:
    """The memory of internal slots: what appears after this object was made."""

    def __init__(self) -> None:
        self._known = _kernel_made()

    def unmap(self) -> int:
        """Put memory without access in the place of what has appeared; return how many there were.

        It looks like the kernel's, and belongs to the kernel: what is left of it is a leftover.
        """
        found = [
            (start, end)
            for start, end in _kernel_made()
            if not any(start < known_end and known < end for known, known_end in self._known)
        ]
        for start, end in found:
            flags = MapFlag.SHARED | MapFlag.ANONYMOUS | MapFlag.FIXED
            mman.map_memory(start, end - start, Protection.NONE, flags)
        self._known += found
        return len(found)


class Leftovers:
    """Compares the process with what it was when this object was made.

    Finds nothing where there is no /proc to look at: `KernelWatch` says that this weakens a run.
    """

    def __init__(self) -> None:
        try:
            self._before: set[str] | None = _traces()
        except FileNotFoundError:
            self._before = None

    def found(self) -> tuple[str, ...]:
        """Return the open files and mappings of a VM that were not there before."""
        return () if self._before is None else tuple(sorted(_traces() - self._before))


def _traces() -> set[str]:
    return {*_mappings(), *_open_files()}


def _mappings() -> Iterator[str]:
    """Yield the mappings of a VM, and those that look like the kernel's; neighbours are one.

    A process that protects a part of its own memory splits the mapping of it.
    """
    start, end, name = 0, -1, ""
    for first, last, found in shared_mappings():
        if not (found == _KERNEL_MADE or _KVM_FILE in found):
            continue
        if (first, found) == (end, name):
            end = last
            continue
        if name:
            yield f"mapping {start:x}-{end:x} {name}"
        start, end, name = first, last, found
    if name:
        yield f"mapping {start:x}-{end:x} {name}"


def _kernel_made() -> list[tuple[int, int]]:
    """Return start and end of the mappings that look as if the kernel had made them."""
    return [(start, end) for start, end, name in shared_mappings() if name == _KERNEL_MADE]


def _open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of this very listing
        if target.startswith(_KVM_FILE):
            found.append(f"open file {name} {target}")
    return found
