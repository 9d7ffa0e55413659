"""What the lab's commands share: kernels by name, the project inside machines, statuses."""

import compileall
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

import vmm
from vmm.cli.options.whitebox import WHERE_IT_CAN
from vmm.cli.output.errors import Ended
from vmm.cli.output.printing import tell
from vmm.cli.preloaded import PROGRAM
from vmm.lab.cache import cache_folder, home
from vmm.lab.debian import RELEASES, fetched
from vmm.lab.errors import LabError, MissingError, NoKernelError
from vmm.lab.kernel import Kernel, from_path
from vmm.lab.machine import Backend, Job
from vmm.scenario.endings import of_the_host
from vmm.verdict import statuses

ROOT = Path(vmm.__file__).resolve().parents[1]
PATIENCE = {Backend.SVM: 30, Backend.VMX: 60, Backend.KVM: 4}
"""How many times as long as on hardware a scenario may take."""

_WORST_FIRST = (
    statuses.INTERNAL_ERROR,
    statuses.DIFFERS,
    statuses.USAGE,
    statuses.INCONCLUSIVE,
    statuses.NOTHING_RAN,
)


class LabFailed(Ended):
    """The lab could not do its part."""


@contextmanager
def in_one_line(status: int | None = None) -> Iterator[None]:
    """Turn the lab's errors into a line and a status.

    ``status``, if given, replaces the statuses that mean that there is no verdict.
    """
    try:
        yield
    except LabError as error:
        raise LabFailed(str(error), _status(error) if status is None else status) from None
    except OSError as error:
        if not _is_of_the_cache(error):
            raise
        why = f"{of_the_host(error)}: XDG_CACHE_HOME says where the lab keeps files"
        raise LabFailed(why, statuses.INCONCLUSIVE if status is None else status) from None


def _is_of_the_cache(error: OSError) -> bool:
    """Whether an error concerns the lab's cache folder, its files or its parents."""
    cache = cache_folder()
    names = (name for name in (error.filename2, error.filename) if isinstance(name, str | Path))
    return any(Path(name).is_relative_to(cache) or cache.is_relative_to(name) for name in names)


def _status(error: LabError) -> int:
    match error:
        case MissingError():
            return statuses.NOTHING_RAN
        case NoKernelError():
            return statuses.USAGE
        case _:
            return statuses.INCONCLUSIVE


def say(text: str) -> None:
    """Print a line about the lab itself, on standard error."""
    tell(f"lab: {text}", err=True)


def kernel_of(name: str, folder: Path | None) -> Kernel:
    """Return a kernel by Debian's name or by its path."""
    if name in RELEASES:
        if folder is not None:
            raise click.UsageError("--modules goes with a kernel of your own")
        return fetched(name, say)
    path = Path(name)
    if not name or not os.path.exists(path):
        known = ", ".join(sorted(RELEASES))
        raise click.UsageError(f"--kernel {name}: no such file or folder, and none of {known}")
    if folder is not None and not os.path.isdir(folder):
        raise click.UsageError(f"--modules {folder}: no such folder")
    return from_path(path.resolve(), folder and folder.resolve())


def job_of(words: tuple[str, ...], backend: Backend, debug_info: Path | None = None) -> Job:
    """Return one of our commands as a job: it starts in this folder, and its files land here.

    It looks into the kernel (white box) if it can, with ``debug_info``.
    """
    compileall.compile_dir(ROOT / "vmm", quiet=2)
    folder = Path.cwd().resolve()
    if folder == Path("/"):
        raise click.UsageError("start it in another folder than /: the machine may write to it")
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(home()),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "TMPDIR": "/dev/shm",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(ROOT),
        "VMM_PATIENCE": str(PATIENCE[backend]),
        WHERE_IT_CAN: "1",
    }
    if debug_info is not None:
        environment["VMM_DEBUG_INFO"] = str(debug_info)
    python = Path(sys.prefix, "bin", "python")
    start = (str(python), "-P", "-m")
    command = (*start, PROGRAM, *words)
    code = tuple(ROOT / name for name in ("vmm", "kvm_abi", "guests"))
    kept = (*code, ROOT / ".venv") if (ROOT / ".venv").exists() else code
    inputs = tuple(Path(word).absolute() for word in words if os.path.isfile(word))
    if debug_info is not None:
        inputs += (debug_info,)
    preloaded = (*start, "vmm.cli.preloaded")
    return Job(command, folder, environment, kept, code, inputs, preloaded)


def worst(every: Iterable[int]) -> int:
    """Return the gravest status: a difference before what is only inconclusive."""
    found = set(every)
    other = statuses.INCONCLUSIVE if found - {statuses.PASSED} else statuses.PASSED
    return next((status for status in _WORST_FIRST if status in found), other)
