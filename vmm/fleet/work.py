"""The work of a cluster's worker: run one command of this program, and return its results."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from vmm.scenario.toolversion import tool_version

OUT = "{out}"
"""Placeholder in a command for a folder on the worker, whose files are returned."""

MOST_BYTES = 64 << 20
"""The most bytes of files, and of text, that one task returns."""

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
"""The command, which ends with the worker that started it, since nobody else would end it.

It holds a name that only one process on a host can have, and waits while another command has it: a
stalled worker's, or another user's.
"""


class OtherVersionError(RuntimeError):
    """The worker has another version of this program than the one that asks."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a command ended: its exit status, its output, and the files it left in ``OUT``.

    Names in ``files`` are relative to ``OUT``. ``left_out`` names files that did not fit.
    """

    status: int
    printed: str
    complained: str
    files: dict[str, bytes] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def run(command: tuple[str, ...], timeout_s: float, host: str, wanted: str) -> Report:
    """Run a command of this program and return its report. It ends when this process ends.

    It waits until no other task runs on the host, which the cluster knows as ``host``. ``wanted``
    is the version of this program that has sent the command.

    Raises OtherVersionError, subprocess.TimeoutExpired, and OSError if the host cannot start it.
    """
    if (here := tool_version()) != wanted:
        raise OtherVersionError(f"it has memslot-vmm {here}, not {wanted}")
    with tempfile.TemporaryDirectory(prefix="vmm-fleet-", ignore_cleanup_errors=True) as folder:
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
    """Return output with ``OUT`` in place of the folder, which is gone when the output is read."""
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
