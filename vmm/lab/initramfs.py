"""The machine's initramfs: an init, its settings, and modules. Format: cpio, newc."""

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from vmm.lab.cache import cache_folder
from vmm.lab.errors import LabError, MissingError

_SOURCES = Path(__file__).with_name("init")

Setting = tuple[str, str]
"""A key and a value of /lab.conf, which init/init.c explains."""

Entry = tuple[str, int, bytes]
"""A path, a mode with the file type, and the content (for a link: its target)."""


def archive(files: Iterable[Entry]) -> bytes:
    """Return files (path, mode, content) as an archive that the kernel unpacks."""
    parts = [
        _entry(path, mode, content, number) for number, (path, mode, content) in enumerate(files, 1)
    ]
    return b"".join([*parts, _entry("TRAILER!!!", 0, b"", 0)])


def _entry(path: str, mode: int, content: bytes, number: int) -> bytes:
    name = path.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % value for value in fields)
    return _padded(header + name) + _padded(content)


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)


def folder(path: str) -> Entry:
    """Return an entry for a folder."""
    return path, stat.S_IFDIR | 0o755, b""


def program(path: str, content: bytes) -> Entry:
    """Return an entry for a program."""
    return path, stat.S_IFREG | 0o755, content


def settings_text(settings: Sequence[Setting]) -> bytes:
    """Return the content of /lab.conf. Raises LabError for a NUL byte."""
    words = [os.fsencode(word) for setting in settings for word in setting]
    if any(b"\0" in word for word in words):
        raise LabError("an argument holds a NUL byte")
    return b"".join(word + b"\0" for word in words)


def compiled_init() -> bytes:
    """Return the init program, compiled once and cached. Raises MissingError."""
    files = sorted(_SOURCES.glob("*.[ch]"))
    content = b"".join(path.name.encode() + path.read_bytes() for path in files)
    kept = cache_folder() / "init" / hashlib.sha256(content).hexdigest()
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC") or "cc"
        if not shutil.which(compiler):
            raise MissingError(f"{compiler} is missing: apt install gcc libc6-dev")
        with tempfile.TemporaryDirectory(dir=kept.parent, ignore_cleanup_errors=True) as scratch:
            output = Path(scratch, "init")
            sources = [str(path) for path in files if path.suffix == ".c"]
            command = [compiler, "-static", "-Os", "-s", "-o", str(output), *sources]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["no message"]
                raise MissingError(
                    f"{compiler} -static fails: {lines[-1]}: apt install gcc libc6-dev"
                )
            output.rename(kept)
    return kept.read_bytes()
