"""This Python and the project, as files of an initramfs.

For emulators that cannot share the host's files. Everything has the same path as on the host.
"""

import os
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import cache_from_source
from pathlib import Path

from vmm.lab.initramfs import Entry
from vmm.lab.modules import stripped

PROJECT = "memslot-vmm"

_NOT_NEEDED = frozenset(
    (
        *("test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "turtledemo"),
        *("pydoc_data", "distutils", "site-packages", "dist-packages", "__pycache__"),
        *("sqlite3", "dbm", "wsgiref", "xmlrpc", "curses", "venv", "msilib"),
    )
)
_NOT_LINKED = re.compile(
    r"_(tkinter|sqlite3|ssl|dbm|gdbm|curses|curses_panel|test.*|xx.*)\..*so|nis\..*so"
)
"""Modules of the standard library that need large libraries."""

_LARGE = 1 << 17
"""A library with more bytes than this probably contains debug information."""

_LEXERS = re.compile(r"pygments/(lexers|styles|formatters)/(?!__init__|_mapping)")
"""Most of the bytes of a package of which only one function is used."""

_NAME = re.compile(r"[\w.-]+")
_LIBRARY = re.compile(r"^\t(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)
"""A linked library in the output of `ldd`."""


def bundled(folders: Iterable[Path], files: Iterable[Path]) -> list[Entry]:
    """Return the interpreter, its library, packages, linked libraries, and the named files."""
    python = Path(sys.executable).resolve()
    chosen = sources(folders) | set(files)
    chosen.update(_libraries(chosen))
    entries = dict(_entries(chosen))
    link = Path(sys.prefix, "bin", "python")
    entries[str(link)] = (stat.S_IFLNK | 0o777, os.fsencode(python))
    return [(path.lstrip("/"), *entry) for path, entry in sorted(_with_folders(entries).items())]


def sources(folders: Iterable[Path]) -> set[Path]:
    """Return the files of Python, of the packages that the project needs, and of its folders."""
    chosen = {Path(sys.executable).resolve(), Path(sys.prefix, "pyvenv.cfg")}
    chosen.update(_python_files(Path(sysconfig.get_paths()["stdlib"])))
    chosen.update(_packages(PROJECT))
    for folder in folders:
        chosen.update(_python_files(folder))
    return chosen


def _packages(project: str) -> Iterator[Path]:
    """Yield the files of all packages that a project needs, without its own."""
    waiting, known = [project], set[str]()
    while waiting:
        name = waiting.pop()
        if name in known:
            continue
        known.add(name)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # It is for another Python or system.
        for requirement in package.requires or ():
            if "extra ==" not in requirement and (match := _NAME.match(requirement)):
                waiting.append(match[0].replace("_", "-").lower())
        for file in package.files or ():
            parts = file.parts
            if name == project and file.name != "METADATA":  # The version is in METADATA.
                continue
            if ".." in parts or _NOT_NEEDED.intersection(parts) or _LEXERS.match(str(file)):
                continue
            yield Path(str(file.locate()))


def _python_files(top: Path) -> Iterator[Path]:
    """Yield a package's files without tests and caches, or a module's single file."""
    if top.is_file():
        yield top
        return
    for place, folders, files in os.walk(top):
        folders[:] = [
            name for name in folders if name not in _NOT_NEEDED and not name.startswith("config-")
        ]
        yield from (Path(place, name) for name in files if not _NOT_LINKED.fullmatch(name))


def _libraries(files: Iterable[Path]) -> set[Path]:
    linked = [str(path) for path in files if ".so" in path.name or os.access(path, os.X_OK)]
    done = subprocess.run(["ldd", *linked], capture_output=True, text=True, check=False)
    return {Path(name) for name in _LIBRARY.findall(done.stdout)}


def _entries(files: Iterable[Path]) -> Iterator[tuple[str, tuple[int, bytes]]]:
    """Yield files, with compiled modules instead of their sources, so that no times are compared.

    Packages that read their own sources keep them.
    """
    for path in files:
        if not path.is_file():
            continue
        compiled = Path(cache_from_source(str(path))) if path.suffix == ".py" else path
        if compiled != path and compiled.exists():
            yield str(path.with_suffix(".pyc")), (stat.S_IFREG | 0o644, compiled.read_bytes())
        else:
            is_large = ".so" in path.name and path.stat().st_size > _LARGE
            content = stripped(path, "--strip-unneeded") if is_large else path.read_bytes()
            yield str(path), (stat.S_IFREG | 0o755, content)


def _with_folders(entries: dict[str, tuple[int, bytes]]) -> dict[str, tuple[int, bytes]]:
    folders = {str(parent) for path in entries for parent in Path(path).parents}
    return dict.fromkeys(folders - {"/"}, (stat.S_IFDIR | 0o755, b"")) | entries
