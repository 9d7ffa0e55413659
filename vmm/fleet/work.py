"""What a worker of the cluster does: run one command of this program, and send back all of it."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

OUT = "{out}"
"""Stands in a command for a folder of the worker's own, whose files come back."""

MOST_BYTES = 64 << 20
"""So much of files, and of text, one task sends back at most."""

_MORTAL = """
import sys
from kvm_abi.raw import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
from vmm.cli.__main__ import run
run()
"""
"""The command, which ends with the worker that started it: nobody else would end it."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a command ended: its exit status, what it printed, and the files it left in ``OUT``.

    A name in ``files`` is a path relative to ``OUT``. ``left_out`` names files that did not fit.
    """

    status: int
    printed: str
    complained: str
    files: dict[str, bytes] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def run(command: tuple[str, ...], timeout_s: float) -> Report:
    """Run a command of this program, and return what came back. Its end is ours, too.

    Raises subprocess.TimeoutExpired, and OSError where this host cannot start it.
    """
    with tempfile.TemporaryDirectory(prefix="vmm-fleet-") as folder:
        words = [word.replace(OUT, folder) for word in command]
        done = subprocess.run(
            [sys.executable, "-P", "-c", _MORTAL, str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
        )
        files, left_out = _files(Path(folder))
    return Report(done.returncode, _text(done.stdout), _text(done.stderr), files, left_out)


def _text(printed: bytes) -> str:
    return printed[-MOST_BYTES:].decode(errors="replace")


def _files(folder: Path) -> tuple[dict[str, bytes], tuple[str, ...]]:
    found: dict[str, bytes] = {}
    left_out = []
    room = MOST_BYTES
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        name = str(path.relative_to(folder))
        size = path.stat().st_size
        if size > room:
            left_out.append(name)
            continue
        room -= size
        found[name] = path.read_bytes()
    return found, tuple(left_out)
