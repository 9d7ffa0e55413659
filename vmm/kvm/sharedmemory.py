"""The shared mappings of this process, including those that the kernel created."""

import errno
from pathlib import Path

from kvm_abi import mman

SharedMapping = tuple[int, int, str]
"""Start, end and name, as in /proc/PID/maps."""

_MAPS = Path("/proc/self/maps")


def shared_mappings() -> list[SharedMapping]:
    """Return the shared mappings of this process, ascending."""
    try:
        with _MAPS.open("rb", buffering=0) as maps:
            return mman.shared_mappings(maps.fileno())
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
    return shared_among(_MAPS.read_text())


def shared_among(maps: str) -> list[SharedMapping]:
    """Return the same from the text of the file: slower, for kernels before 6.11."""
    found = []
    for line in maps.splitlines():
        place, permissions, *_, name = f"{line} ".split(" ", 5)
        if permissions.endswith("s"):
            start, end = place.split("-")
            found.append((int(start, 16), int(end, 16), name.strip()))
    return found
