"""What a VM leaves behind in the process that made it."""

import os
from pathlib import Path

_KVM_FILE = "anon_inode:kvm"
_KERNEL_MADE = "/dev/zero (deleted)"
"""What the kernel's own mappings of internal slots (vm_mmap of shared memory) look like."""


class Leftovers:
    """Compares the process with what it was when this object was made."""

    def __init__(self) -> None:
        self._before = _traces()

    def found(self) -> tuple[str, ...]:
        """Return the open files and mappings of a VM that were not there before."""
        return tuple(sorted(_traces() - self._before))


def _traces() -> set[str]:
    maps = {
        f"mapping {line.split(maxsplit=1)[0]} {line.split(maxsplit=5)[-1]}"
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(_KERNEL_MADE) or _KVM_FILE in line
    }
    return maps | set(_open_files())


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
