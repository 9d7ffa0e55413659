"""Several machines, some at a time: each is a process with its own folder for files."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmm.lab.machine import Backend
from vmm.lab.process import dying_with_parent

MMUS: dict[Backend, tuple[tuple[str, ...], ...]] = {
    Backend.SVM: (("kvm_amd.npt=1",), ("kvm_amd.npt=0",)),
    Backend.VMX: (
        ("kvm_intel.ept=1",),
        ("kvm_intel.ept=0",),
        ("kvm_intel.unrestricted_guest=0",),
    ),
}
"""The parameters that select each MMU of a vendor's KVM; the last on Intel has internal slots."""

_ROOM_MIB = 1024
"""What a machine takes in addition to its memory."""

_LOOK_S = 0.2
_END_S = 20


@dataclass(frozen=True, slots=True)
class Cell:
    """A machine of the matrix: ``kernel`` is the value for `vmm lab run --kernel`.

    ``number`` distinguishes kernels of the same name, from 2 on.
    """

    kernel: str
    backend: Backend
    parameters: tuple[str, ...]
    number: int = 1

    @property
    def name(self) -> str:
        """A name for people and for a folder."""
        kernel = _name_of(self.kernel) + (f"-{self.number}" if self.number > 1 else "")
        return "-".join(
            (kernel, self.backend.value, *(p.partition(".")[2] for p in self.parameters))
        )

    def options(self) -> list[str]:
        """Return the options of `vmm lab run` that start this machine and no others."""
        words = ["--kernel", self.kernel, "--backend", self.backend.value, "--at-once", "1"]
        for each in self.parameters:
            words += ["--param", each]
        return words


@dataclass(frozen=True, slots=True)
class Task:
    """One `vmm lab run`; its files, and its output as ``output.txt``, go to ``folder``."""

    label: str
    command: Sequence[str]
    folder: Path


def cells_of(kernels: Sequence[str], backends: Sequence[Backend]) -> list[Cell]:
    """Return a cell for each kernel and each MMU; kernels that are named twice count once."""
    once = list(dict.fromkeys(kernels))
    names = [_name_of(kernel) for kernel in once]
    return [
        Cell(kernel, backend, parameters, names[: number + 1].count(names[number]))
        for number, kernel in enumerate(once)
        for backend in dict.fromkeys(backends)
        for parameters in MMUS[backend]
    ]


def _name_of(kernel: str) -> str:
    return kernel.rstrip("/").rpartition("/")[2] or "kernel"


def run_all(
    tasks: Sequence[Task],
    at_once: int,
    done: Callable[[Task, int, float], None],
    look: Callable[[Sequence[Task]], None] = lambda _: None,
) -> dict[str, int]:
    """Run tasks, some at a time, and return their statuses by label; ``done`` gets each result.

    ``look`` regularly gets the tasks under way. If this is interrupted, all of them are ended; if
    it is killed, they get SIGTERM.
    """
    waiting = list(reversed(tasks))
    running: dict[subprocess.Popen[bytes], tuple[Task, float]] = {}
    statuses: dict[str, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                task = waiting.pop()
                running[_start(task)] = (task, time.monotonic())
            time.sleep(_LOOK_S)
            look([task for task, _ in running.values()])
            for process in [each for each in running if each.poll() is not None]:
                task, start = running.pop(process)
                statuses[task.label] = process.returncode
                done(task, process.returncode, time.monotonic() - start)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
    return statuses


def _start(task: Task) -> subprocess.Popen[bytes]:
    task.folder.mkdir(parents=True, exist_ok=True)
    with (task.folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            dying_with_parent("TERM", task.command),
            cwd=task.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def usual_number(cpus: int = 1, memory_mib: int = 2048) -> int:
    """Return how many machines of this size this host can run at a time."""
    all_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    all_cpus = len(os.sched_getaffinity(0))
    return max(1, min(all_cpus // cpus, all_mib // (memory_mib + _ROOM_MIB)))
