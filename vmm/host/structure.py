"""How the running kernel keeps memslots: a sorted array (to Linux 5.16), or trees (since 5.17).

Pictures depend on it, and a known issue; both make the same promises. The kernel's own type
information (BTF) says which; without BTF we guess from the version, which a kernel with backports
may belie.
"""

import re
from pathlib import Path

ARRAY, TREE = "array", "tree"
_SIGNS = ((b"\0gfn_tree\0", TREE), (b"\0used_slots\0", ARRAY))
_FIRST_WITH_TREES = (5, 17)


def memslot_structure(sys: Path, release: str) -> str:
    """Return `TREE` or `ARRAY`, or an empty string if it is unknown."""
    for name in ("kvm", "vmlinux"):
        try:
            types = (sys / "kernel" / "btf" / name).read_bytes()
        except OSError:
            continue
        for sign, structure in _SIGNS:
            if sign in types:
                return structure
    return by_release(release)


def by_release(release: str) -> str:
    """Return what a kernel of this release usually has; empty if it is not a release."""
    numbers = release_numbers(release)
    if numbers is None:
        return ""
    return TREE if numbers >= _FIRST_WITH_TREES else ARRAY


def release_numbers(release: str) -> tuple[int, int] | None:
    """Return the first two numbers of a kernel's release; None if it is not a release."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return (int(numbers[1]), int(numbers[2])) if numbers else None
