"""The same work in C: compiled here, run next to ours, and asked for rounds."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from kvm_abi.raw import MOST_INTERRUPTIONS
from vmm.bench import guest, setup as places
from vmm.bench.library import Round
from vmm.bench.setup import Setup

_NUMBERS = (
    *("CODE_GPA", "WORK_GPA", "OTHER_GPA", "HOLE_GPA", "FILL_GPA"),
    *("HUGE_PAGE_BYTES", "TOUCHED_PAGES", "RING_BYTES", "READINGS"),
)


class NoCompilerError(Exception):
    """There is no C compiler, or it cannot compile the program; the text says why."""


def compiled(folder: Path) -> Path:
    """Compile the program into a folder and return it. Raises NoCompilerError."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompilerError("no C compiler: apt install gcc libc6-dev")
    program = folder / "bench"
    defined = [f"-D{name}={getattr(places, name):#x}ull" for name in _NUMBERS]
    defined.append(f"-DMOST_INTERRUPTIONS={MOST_INTERRUPTIONS}")
    defined += [f"-DOFFSET_{name.upper()}={at:#x}" for name, at in guest.OFFSETS.items()]
    code = guest.code_page().rstrip(b"\0")
    defined.append("-DCODE_BYTES=" + ",".join(map(str, code)))
    with as_file(files("vmm.bench") / "bench.c") as source:
        done = subprocess.run(
            [compiler, "-O2", "-Wall", *defined, "-o", program, source],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise NoCompilerError(f"{compiler} cannot compile bench.c: {done.stderr.strip()}")
    return program


@contextmanager
def ready(program: Path, setup: Setup) -> Iterator[Round]:
    """Start the program for a setup; yield a function that runs rounds. It inherits our CPU mask.

    A round raises RuntimeError with the program's message if it could not go on.
    """
    words = [setup.work, str(setup.slots), str(setup.pages), str(setup.vcpus), str(int(setup.huge))]
    with subprocess.Popen(
        [program, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        into, out, said = process.stdin, process.stdout, process.stderr
        assert into is not None
        assert out is not None
        assert said is not None

        def round_(times: int) -> int:
            try:
                print(times, file=into, flush=True)
                return int(out.readline())
            except (BrokenPipeError, ValueError):
                raise RuntimeError(f"the C program ended: {said.read().strip()}") from None

        try:
            yield round_
        finally:
            process.kill()
