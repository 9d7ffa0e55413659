"""How much memory this process can take before the OOM killer acts."""

from collections.abc import Iterator
from pathlib import Path

_MACHINE = "MemAvailable:"
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_UNLIMITED_BYTES = 1 << 60
"""A limit of this much or more means "unlimited", for which cgroup version 1 has no word."""


class FreeMemory:
    """Reads the free memory of the machine, and of the control groups that limit this process.

    A file that cannot be read sets no limit. ``proc`` and ``cgroups`` are for tests.
    """

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._meminfo = proc / "meminfo"
        self._groups = [
            (folder, names)
            for folder, names in _groups(_text(proc / "self/cgroup"), cgroups)
            if _number(folder / names[0]) < _UNLIMITED_BYTES
        ]

    def size_bytes(self) -> int:
        """Return the bytes that are free now, including caches that can be dropped."""
        available_kib = _field(self._meminfo, _MACHINE)
        free = [_UNLIMITED_BYTES if available_kib is None else available_kib << 10]
        for folder, (limit, usage, droppable) in self._groups:
            left = _number(folder / limit) - _number(folder / usage)
            free.append(left + (_field(folder / "memory.stat", droppable) or 0))
        return max(min(free), 0)


def _groups(memberships: str, cgroups: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the folders of this process's groups, with the names of their files.

    In a container, a group may be at the root instead of at its path.
    """
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            places = [(cgroups / "memory", _VERSION_1)]
        elif not controllers:
            places = [(cgroups, _VERSION_2), (cgroups / "unified", _VERSION_2)]
        else:
            continue
        for root, names in places:
            own = root / path.lstrip("/")
            yield from ((each, names) for each in (own, *own.parents) if each.is_relative_to(root))


def _number(file: Path) -> int:
    """Return the number in a file; `_UNLIMITED_BYTES` if there is none."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else _UNLIMITED_BYTES


def _field(file: Path, name: str) -> int | None:
    """Return the number after a name in a file, None if there is none."""
    for line in _text(file).splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
