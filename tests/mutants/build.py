"""Builds KVM with all bugs in it, on a tree that stays as it is.

The source and the build of `scripts/lab-kernel` are mounted under an overlay, in a mount namespace
of the build alone: compilers see the same paths as before, so only KVM is compiled again, and what
is written lands in a folder of ours. The modules are copied from there.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.rows import Mutant, sources_with
from vmm.lab.cache import cache_folder
from vmm.lab.errors import LabError, MissingError

MODULES = (
    *("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko"),
    *("arch/x86/kvm/kvm-amd.ko", "arch/x86/kvm/kvm-intel.ko"),
)
_SCRIPT = """
set -e
layer() {
    mkdir -p "$2/upper" "$2/work"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$1"
}
layer "$SOURCE" "$SCRATCH/source"
layer "$BUILD" "$SCRATCH/build"
cd "$SCRATCH/edited"
find . -type f | while read -r each; do
    cmp -s "$each" "$SOURCE/$each" || cp "$each" "$SOURCE/$each"
done
make -C "$BUILD" -j"$JOBS" CFLAGS_MODULE="$FLAGS" $TARGETS
cd "$BUILD"
cp $TARGETS "$MODULES"
"""


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel, and the modules with the bugs; ``identity`` changes with the bugs' sources."""

    version: str
    tree: Path
    modules: Path
    identity: str


def built(version: str, rows: Sequence[Mutant], jobs: int) -> Built:
    """Return KVM with the bugs, building it if it is not there.

    Raises LabError where that fails, and EditError for an edit that does not apply.
    """
    cache = cache_folder()
    tree = _tree(version)
    source = (tree / "source").resolve()
    edited = sources_with(rows, source)
    config = (tree / ".config").read_bytes()
    # The white box has to know the kernel's structures.
    flags = "" if b"\nCONFIG_DEBUG_INFO=y\n" in config else "-g"
    digest = hashlib.sha256(config + flags.encode())
    for name, text in sorted(edited.items()):
        digest.update(f"{name}\0{text}\0".encode())
    identity = digest.hexdigest()[:12]
    folder = cache / "mutants" / f"{version}-{identity}"
    if not (folder / "modules").exists():
        scratch = cache / "mutants" / f"{version}-layers"
        _build(tree, source, edited, scratch, jobs, flags)
        folder.mkdir(parents=True, exist_ok=True)
        (scratch / "modules").rename(folder / "modules")
    return Built(version, tree, folder / "modules", identity)


def _tree(version: str) -> Path:
    tree = cache_folder() / "kernels" / f"{version}-small"
    if not (tree / "vmlinux").exists():
        raise MissingError(f"{tree} is no built kernel: scripts/lab-kernel small {version}")
    return tree


def _build(
    tree: Path, source: Path, edited: dict[str, str], scratch: Path, jobs: int, flags: str
) -> None:
    if os.geteuid():
        raise MissingError("mounting an overlay takes root")
    # What is compiled already stays there, unless the tree below has changed.
    if scratch.exists() and scratch.stat().st_ctime < (tree / "vmlinux").stat().st_mtime:
        shutil.rmtree(scratch)
    shutil.rmtree(scratch / "edited", ignore_errors=True)
    (scratch / "modules").mkdir(parents=True, exist_ok=True)
    for name, text in edited.items():
        (scratch / "edited" / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / "edited" / name).write_text(text)
    targets = [each for each in MODULES if (tree / each).exists()]
    variables = {
        "SOURCE": source,
        "BUILD": tree,
        "SCRATCH": scratch,
        "MODULES": scratch / "modules",
        "JOBS": jobs,
        "FLAGS": flags,
        "TARGETS": " ".join(targets),
    }
    log = scratch.parent / "build.log"
    print(f"mutants: building KVM with the bugs; all that is said is in {log}", file=sys.stderr)
    with log.open("wb") as file:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", _SCRIPT],
            env={**os.environ, **{name: str(value) for name, value in variables.items()}},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        lines = log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if "error:" in line] or lines[-3:] or ["no message"]
        raise LabError(f"the build failed: {'; '.join(errors[:5])} (see {log})")
