"""The Python side of the wrong kernel: builds it, lists its faults, runs programs on it.

The library in `wrong_kernel/` is preloaded into a program and gives deliberately wrong answers in
place of the kernel; `witness/` is a plain C program that shows each of them.
"""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from vmm.execution.probe.features import probe_features
from vmm.kvm.system import Kvm
from vmm.scenario.features import Features

HERE = Path(__file__).resolve().parent
_CC = ("gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror")
_SHARED = ("-fPIC", "-shared", "-pthread")
_COUNTED = ("fill", "empty")


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which the kernel can be wrong.

    `name` is a value of WRONG_KERNEL, also as `name:after=N` (inactive for the VM's first N
    successful changes) or `name:every=N` (only on every Nth occasion). `witness` is the shortest
    sequence of operations that shows it, in the language of `witness/witness.c`; "" if it takes
    two address spaces, which few hosts have.
    """

    name: str
    sentence: str
    witness: str

    @property
    def operations(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.witness.split(";") if part)

    @property
    def fewest(self) -> int:
        """How many region calls, guest accesses and dirty log reads it takes to show it."""
        return sum(_count(operation) for operation in self.operations)


def _count(operation: str) -> int:
    verb, *rest = operation.split()
    return int(rest[0]) if verb in _COUNTED else 1


@cache
def build() -> Path:
    """Compile the library to preload, unless its sources are unchanged. Needs gcc."""
    return _compile("wrong_kernel", ".so", _SHARED)


@cache
def build_witness() -> Path:
    """Compile the program that plays witnesses."""
    return _compile("witness", "", ("-pthread",))


def faults() -> tuple[Fault, ...]:
    """Return all faults of the library, in its order."""
    listing = subprocess.run(
        ["/bin/true"], env=environment("list"), capture_output=True, text=True, check=True
    )
    return tuple(Fault(*line.split("\t")) for line in listing.stdout.splitlines())


def environment(
    fault: str = "", base: Mapping[str, str] = os.environ, call: str = ""
) -> dict[str, str]:
    """Return an environment in which programs meet this fault; by default none.

    ``call`` is another class of fault: the answer to a call that every VMM needs, in any VM.
    ``KVM_SET_SREGS:errno=22:after=3`` refuses all but the first three; ``answer=N``, ``hang=1``,
    ``kill=N``, ``writes=1``, and for some calls ``other=1``, ``exit=N`` and ``direction=N`` can
    replace ``errno=N``: `calls_refused.c` explains them.

    A running program may choose another fault: WRONG_KERNEL is read whenever a VM is created. An
    unknown name ends the program with status 2.
    """
    return {**base, "LD_PRELOAD": str(build()), "WRONG_KERNEL": fault, "WRONG_CALL": call}


def features_below() -> Features:
    """Return what programs find here with the library preloaded, which pretends that KSM runs."""
    with Kvm.open() as kvm:
        return msgspec.structs.replace(probe_features(kvm), ksm=True)


def _compile(folder: str, suffix: str, options: tuple[str, ...]) -> Path:
    sources = sorted((HERE / folder).glob("*.c"))
    digest = hashlib.sha256(" ".join((*_CC, *options)).encode())
    for path in sorted((HERE / folder).glob("*.[ch]")):
        digest.update(path.name.encode() + path.read_bytes())
    target = _cache_folder() / f"{folder}-{digest.hexdigest()[:16]}{suffix}"
    if target.exists():
        return target
    # Built under another name: somebody else may be building the same at this moment.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        subprocess.run([*_CC, *options, "-o", made, *sources], check=True)
        made.replace(target)
    return target


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "memslot-lab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
