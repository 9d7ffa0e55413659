"""Saved states of machines that have booted, loaded a command and wait for orders.

The name of a state depends on everything that the machine is made of: kernel, modules, parameters,
this Python and its packages, this project, the emulator.

A state is a folder: the machine's memory as a file, which each machine that starts there maps for
itself (MAP_PRIVATE), so that only the pages which it uses are read, and the state of everything
else (QEMU's x-ignore-shared).
"""

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vmm.lab import initramfs
from vmm.lab.bundle import sources
from vmm.lab.cache import cache_folder
from vmm.lab.errors import LabError
from vmm.lab.machine import QEMU, Backend, Job, Machine, State, command_line
from vmm.lab.modules import Module
from vmm.lab.monitor import Monitor
from vmm.lab.settings import first_settings, preloads

KEPT = 12
"""How many states are kept; each takes the memory that the machine uses, about 0.3 GB."""

_ROOM_MIB = 1 << 10
"""What must be free, besides the memory of a machine, to save another state."""

_SCRATCH = "tmp"
"""How the names of folders begin in which states are made."""

_STALE_S = 24 * 3600.0

_COPIED_BYTES = 1 << 24


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


class Keeping:
    """Saves the state of a machine, whose memory is the file ``memory`` while it runs."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self._path = path
        self._scratch = scratch
        self.memory = scratch / "memory"

    def keep(self, monitor: Monitor) -> None:
        """Save the state of a waiting machine, and remove the oldest states. Raises LabError."""
        state = self._scratch / "state"
        try:
            state.mkdir()
            files = files_of(state)
            monitor.keep(files.devices, lambda: _copy(self.memory, files.memory))
            state.rename(self._path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise LabError(f"{self._path.parent}: {error.strerror}") from None
            # Another run has saved an equal one meanwhile.
        _remove_oldest(self._path.parent)


@contextmanager
def kept(path: Path | None, memory_mib: int) -> Iterator[Keeping | None]:
    """Make room for the state of a machine that is to begin; None if there is too little."""
    if path is None:
        yield None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free_mib = shutil.disk_usage(path.parent).free >> 20
        scratch = tempfile.TemporaryDirectory(
            prefix=_SCRATCH, dir=path.parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise LabError(f"{path.parent}: {error.strerror}") from None
    with scratch as folder:
        yield Keeping(path, Path(folder)) if free_mib >= memory_mib + _ROOM_MIB else None


def files_of(state: Path) -> State:
    """Return the files of a state."""
    return State(state / "memory", state / "devices")


def remove(state: Path) -> None:
    """Remove a state, which machines may still be using."""
    if state.is_dir():
        shutil.rmtree(state, ignore_errors=True)
    else:  # A state of an earlier version.
        state.unlink(missing_ok=True)


def _remove_oldest(states: Path) -> None:
    found = []
    for each in states.iterdir():
        with suppress(OSError):
            used_s = each.stat().st_mtime
            if not each.name.startswith(_SCRATCH):
                found.append((used_s, each))
            elif used_s < time.time() - _STALE_S:  # Its run was killed.
                remove(each)
    for _, each in sorted(found)[:-KEPT]:
        remove(each)


def _copy(source: Path, to: Path) -> None:
    """Copy a file without its holes, which most of a machine's memory is."""
    with source.open("rb") as read, to.open("wb") as written:
        size = os.fstat(read.fileno()).st_size
        written.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(read.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # No data up to the end.
                raise
            end = os.lseek(read.fileno(), at, os.SEEK_HOLE)
            while at < end:
                data = os.pread(read.fileno(), min(_COPIED_BYTES, end - at), at)
                os.pwrite(written.fileno(), data, at)
                at += len(data)


def used(path: Path) -> None:
    """Note the use of a state, so that others are removed before it."""
    with suppress(OSError):
        os.utime(path)
