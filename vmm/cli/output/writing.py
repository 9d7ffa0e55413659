"""Files that a command writes: completely, or not at all."""

import glob
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, TextIOWrapper
from pathlib import Path
from typing import IO

import click

from vmm.cli.output.errors import HostFailed, Unusable, kept, lost, usable
from vmm.host.naming import NamedFile
from vmm.scenario.endings import of_the_host
from vmm.scenario.reading import kind_of

_STDOUT = "-"
_OPEN_FILES = "/proc/self/fd"
_SUFFIX = "?" * 8
"""What `tempfile` appends to make names unique."""


@contextmanager
def written(path: Path) -> Iterator[IO[str]]:
    """Yield a text file that replaces ``path`` when the block ends without an error.

    Until then nobody can read half of it, and the old file stays if this fails. What is not a
    regular file (a pipe, a device) is written directly. Raises Unusable, before the block if the
    path cannot be written.
    """
    with written_bytes(path) as raw:
        stream = TextIOWrapper(raw, encoding="utf-8")
        try:
            yield stream
            with kept(path):
                stream.flush()
        finally:
            stream.detach()


@contextmanager
def written_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file, as `written` does."""
    target = Path(os.path.realpath(path))
    try:
        if _is_special(path):
            yield from _directly(path)
        else:
            yield from _replacing(target, path)
    except OSError as error:
        if error.filename == str(path) and type(error).__module__ == OSError.__module__:
            raise lost(path, error) from None
        raise


def _is_special(path: Path) -> bool:
    with suppress(OSError):
        return not stat.S_ISREG(path.stat().st_mode)
    return False


def _directly(path: Path) -> Iterator[IO[bytes]]:
    """Yield a pipe or a device, by its own name: /dev/stdout and /dev/fd/N may lead to no other."""
    with usable(path):
        raw = NamedFile(path, "wb", path)
    with raw, BufferedWriter(raw) as stream:
        yield stream
        with kept(path):
            stream.flush()


def _replacing(target: Path, path: Path) -> Iterator[IO[bytes]]:
    """Yield a file without a name, which gets that of the target at the end."""
    with usable(path):
        if os.path.exists(target):
            target.open("a").close()  # Replacing alone would ignore its permissions.
        handle = _nameless(target)
    if handle is None:
        with _beside(target, path) as stream:
            yield stream
        return
    with NamedFile(handle, "r+b", path) as raw, BufferedWriter(raw) as stream:
        yield stream
        with kept(path):
            stream.flush()
            with suppress(PermissionError):  # Not every file system keeps modes.
                os.fchmod(handle, _mode(target))
            try:
                _name(handle, target)
            except OSError:  # Such as a file system without hard links.
                _copy(handle, target, path)


@contextmanager
def _beside(target: Path, path: Path) -> Iterator[IO[bytes]]:
    """Yield a file as `written` does, on a file system without unnamed files."""
    with usable(path):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    beside = Path(name)
    try:
        with NamedFile(handle, "wb", path) as raw, BufferedWriter(raw) as stream:
            yield stream
            with kept(path):
                stream.flush()
        with kept(path):
            with suppress(PermissionError):
                beside.chmod(_mode(target))
            beside.replace(target)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _nameless(target: Path) -> int | None:
    """Open a file that has no name yet, so that nothing is left if this process is killed.

    None if that is not possible, or the temporary name beside the target would be too long.
    """
    with suppress(OSError):
        least = os.pathconf(target.parent, "PC_NAME_MAX") - len(f"..{_SUFFIX}")
        if os.path.isdir(_OPEN_FILES) and len(os.fsencode(target.name)) <= least:
            return os.open(target.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
    return None


def _name(handle: int, target: Path) -> None:
    """Let an unnamed file replace the target."""
    # link(2) cannot replace a file: link beside it, then rename.
    name = Path(tempfile.mktemp(prefix=f".{target.name}.", dir=target.parent))
    here = os.open(target.parent, os.O_PATH)
    try:
        # Given a dir_fd, os.link() follows the symbolic link in /proc that leads to the file.
        os.link(f"{_OPEN_FILES}/{handle}", name.name, dst_dir_fd=here)
        name.replace(target)
    finally:
        os.close(here)
        name.unlink(missing_ok=True)


def _copy(handle: int, target: Path, path: Path) -> None:
    """Let a copy of an unnamed file replace the target."""
    with _beside(target, path) as copy:
        copy.write(os.pread(handle, os.fstat(handle).st_size, 0))


def temporary_folder(
    prefix: str = "vmm-", place: Path | None = None
) -> tempfile.TemporaryDirectory[str]:
    """Return a context manager for a folder that is removed at the end.

    It is created in ``place``, or where temporary files go. Raises HostFailed if it cannot be.
    """
    try:
        return tempfile.TemporaryDirectory(prefix=prefix, dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise HostFailed(of_the_host(error)) from None


@contextmanager
def document(file: str) -> Iterator[IO[str]]:
    """Yield the stream for a document: standard output for ``-``, else see `written`."""
    if file == _STDOUT:
        yield sys.stdout
        return
    with written(Path(file)) as stream:
        yield stream


@contextmanager
def made(path: Path) -> Iterator[None]:
    """Create a file, if there is none, that is read while it is written. Raises Unusable.

    If it is new and still empty at the end of the block, it is removed again.
    """
    with usable(path):
        kind = kind_of(os.stat(path).st_mode) if os.path.exists(path) else ""
        if kind:
            raise Unusable(f"{path}: {kind}, not a file: what is written there is read again")
    with unless_empty(path):
        with usable(path):
            path.open("a").close()
        yield


@contextmanager
def unless_empty(path: Path) -> Iterator[None]:
    """Remove a file at the end of the block if it was created in the block and is empty."""
    is_new = not os.path.exists(path)
    try:
        yield
    finally:
        target = os.path.realpath(path)
        if is_new and os.path.isfile(target) and not os.path.getsize(target):
            os.unlink(target)


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; those that are new and empty at the end are removed.

    Raises Unusable and HostFailed.
    """
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        with usable(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in missing:
            with suppress(OSError):  # It is not empty, or was never made.
                each.rmdir()


def spare(inputs: Iterable[Path], outputs: Iterable[str]) -> None:
    """Refuse to write to a file that is read. Raises Unusable."""
    read = [path for path in inputs if os.path.exists(path)]
    for output in outputs:
        if any(os.path.exists(output) and path.samefile(output) for path in read):
            raise Unusable(f"{output}: this is what is read: write to another file")


def apart(outputs: Iterable[str]) -> None:
    """Refuse two outputs to one file, whatever its names; ``-`` is standard output.

    Raises click.UsageError.
    """
    taken: set[str] = set()
    for output in outputs:
        place = os.path.realpath("/dev/stdout" if output == _STDOUT else output)
        if place in taken:
            where = "standard output" if output == _STDOUT else output
            raise click.UsageError(f"two outputs go to {where}: give each a file of its own")
        taken.add(place)


def unfinished(arguments: Iterable[str]) -> set[Path]:
    """Return the files that are not finished, of those that the arguments of a process name."""
    found: set[Path] = set()
    for argument in arguments:
        named = Path(re.split("[:=]", argument)[-1])
        with suppress(OSError, ValueError):
            found.update(named.parent.glob(f".{glob.escape(named.name)}.{_SUFFIX}"))
    return found


def sweep(arguments: Iterable[str], others: set[Path]) -> None:
    """Remove the unfinished files of a process that was killed, for the files among its arguments.

    ``others`` were there before it started: no clock says so, which may be set meanwhile.
    """
    for file in unfinished(arguments) - others:
        with suppress(OSError):
            file.unlink()


def _mode(target: Path) -> int:
    """Return the permissions of a file, or those that a new one would get."""
    with suppress(OSError):
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
