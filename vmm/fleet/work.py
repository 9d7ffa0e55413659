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
import socket, sys, time
from kvm_abi.raw import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
turn, host = socket.socket(socket.AF_UNIX), sys.argv.pop(1)
while True:
    try:
        turn.bind("\\0memslot-vmm fleet " + host)
        break
    except OSError:
        time.sleep(0.2)
from vmm.cli.__main__ import run
run()
"""
"""The command, which ends with the worker that started it: nobody else would end it.

It holds a name, of which there is one on a host, and waits for it while another command does: that
of a worker which stands still, or another user's.
"""


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


def run(command: tuple[str, ...], timeout_s: float, host: str) -> Report:
    """Run a command of this program, and return what came back. Its end is ours, too.

    It waits until no other task runs on the host, by the name that the cluster has for it.

    Raises subprocess.TimeoutExpired, and OSError where this host cannot start it.
    """
    with tempfile.TemporaryDirectory(prefix="vmm-fleet-") as folder:
        words = [word.replace(OUT, folder) for word in command]
        done = subprocess.run(
            [sys.executable, "-P", "-c", _MORTAL, str(os.getpid()), host, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
        )
        files, left_out = _files(Path(folder))
    printed, complained = (_text(each, folder) for each in (done.stdout, done.stderr))
    return Report(done.returncode, printed, complained, files, left_out)


def _text(printed: bytes, folder: str) -> str:
    """Return what was printed, with ``OUT`` for the folder, which is gone when it is read."""
    return printed[-MOST_BYTES:].decode(errors="replace").replace(folder, OUT)


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
