"""Saved states of machines that have booted, loaded a command and wait for orders.

The name of a state depends on everything that the machine is made of: kernel, modules, parameters,
this Python and its packages, this project, the emulator.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vmm.lab import initramfs
from vmm.lab.bundle import sources
from vmm.lab.cache import cache_folder
from vmm.lab.errors import LabError
from vmm.lab.machine import QEMU, Backend, Job, Machine, command_line
from vmm.lab.modules import Module
from vmm.lab.monitor import Monitor
from vmm.lab.settings import first_settings, preloads

KEPT = 12
"""How many states are kept; each takes the memory that the machine uses, about 0.2 GB."""

_ROOM = 2 << 30
"""Bytes that must be free to save another one."""


def state_path(machine: Machine, job: Job, loaded: Sequence[Module]) -> Path | None:
    """Return the path of a machine's state, whether or not it exists; None if it cannot have one.

    ``loaded`` are its modules.
    """
    if machine.backend is not Backend.SVM or not preloads(machine, job):
        return None
    digest = hashlib.sha256()
    for part in _parts(machine, job, loaded):
        digest.update(len(part).to_bytes(8, "little") + part)
    return cache_folder() / "snapshots" / digest.hexdigest()


def _parts(machine: Machine, job: Job, loaded: Sequence[Module]) -> Iterator[bytes]:
    """Yield everything that a machine is made of; Python's files by their times and sizes."""
    emulator = shutil.which(QEMU)
    files = sorted({Path(emulator).resolve() if emulator else Path(QEMU), *sources(job.code)})
    yield machine.kernel.started.read_bytes()
    for module in loaded:
        yield module.content
    yield initramfs.compiled_init()
    yield initramfs.settings_text(first_settings(machine, job, loaded, ""))
    yield f"{machine.cpus} {machine.memory_mib} {command_line(machine)}".encode()
    for path in files:
        with suppress(FileNotFoundError):
            status = path.stat()
            yield os.fsencode(path) + f" {status.st_size} {status.st_mtime_ns}".encode()


def keep(monitor: Monitor, path: Path) -> None:
    """Save the state of a waiting machine, and remove the oldest states. Raises LabError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < _ROOM:
            raise LabError(f"{path.parent}: no room for the machine's state")
        with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as scratch:
            part = Path(scratch, "state")
            monitor.keep(part)
            part.replace(path)
        states = [each for each in path.parent.iterdir() if each.is_file()]
        for each in sorted(states, key=lambda each: each.stat().st_mtime)[:-KEPT]:
            each.unlink(missing_ok=True)
    except OSError as error:
        raise LabError(f"{path.parent}: {error.strerror}") from None


def used(path: Path) -> None:
    """Note the use of a state, so that others are removed before it."""
    with suppress(OSError):
        os.utime(path)
