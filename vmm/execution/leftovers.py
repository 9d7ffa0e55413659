"""What a VM leaves behind in the process that made it."""

import os
from collections.abc import Iterator

from kvm_abi import mman
from kvm_abi.uapi import MapFlag, Protection
from vmm.kvm.sharedmemory import shared_mappings

KVM_FILE = "anon_inode:kvm"
"""How the names of KVM's files begin: of VMs, vCPUs and more."""

_KERNEL_MADE = "/dev/zero (deleted)"
"""The name of the kernel's mappings for internal slots (vm_mmap of shared memory)."""


def can_look_at_itself() -> bool:
    """Whether the process can see its own mappings and open files."""
    try:
        _traces()
    except FileNotFoundError:
        return False
    return True


class InternalMemory:
    """The memory of internal slots: mappings that appear after this object was made."""

    def __init__(self) -> None:
        self._known = _kernel_made()

    def unmap(self) -> int:
        """Replace mappings that have appeared by memory without access; return how many.

        The replacement looks like the kernel's and belongs to the kernel, so that it counts as a
        leftover if it stays.
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
    """Compares the process with its state when this object was made.

    Without /proc it finds nothing; `KernelWatch` reports that as a weakness of the run.
    """

    def __init__(self) -> None:
        try:
            self._before: set[str] | None = _traces()
        except FileNotFoundError:
            self._before = None

    def found(self, *, held: bool = False) -> tuple[str, ...]:
        """Return the open files and mappings of a VM that were not there before.

        A VM that is ``held`` by an open guest_memfd keeps its internal slots (kvm_gmem_release
        gives the last reference back), so that their mappings are none of these.
        """
        if self._before is None:
            return ()
        left = _traces() - self._before
        if held:
            left = {trace for trace in left if not trace.endswith(_KERNEL_MADE)}
        return tuple(sorted(left))


def _traces() -> set[str]:
    return {*_mappings(), *_open_files()}


def _mappings() -> Iterator[str]:
    """Yield the mappings of a VM, and those that look like the kernel's; adjacent ones as one.

    They are joined because mprotect of a part splits a mapping.
    """
    start, end, name = 0, -1, ""
    for first, last, found in shared_mappings():
        if not (found == _KERNEL_MADE or KVM_FILE in found):
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
    """Return start and end of the mappings that look like the kernel's."""
    return [(start, end) for start, end, name in shared_mappings() if name == _KERNEL_MADE]


def _open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # The descriptor of the listing itself.
        if target.startswith(KVM_FILE):
            found.append(f"open file {name} {target}")
    return found
