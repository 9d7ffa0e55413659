"""`git bisect run`, with the lab's line of docs/howto/bisect.md: steps build KVM, and boot it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import shown_in
from vmm.lab.cache import cache_folder
from vmm.lab.machine import QEMU

ROOT = Path(__file__).parents[2]
TREE = cache_folder() / "kernels/6.12-small"
CHANGED = "virt/kvm/kvm_main.c"
MOVES = "\t\tchange = KVM_MR_MOVE;\n"
WRONG = "\t\treturn -EINVAL;\n"
LIMIT_S = 900

_BUILT_ELSEWHERE = """
set -e
layer() {
    mkdir -p "$SCRATCH/$2/upper" "$SCRATCH/$2/work"
    mount -t overlay overlay \
        -o "lowerdir=$1,upperdir=$SCRATCH/$2/upper,workdir=$SCRATCH/$2/work" "$1"
}
mount -t tmpfs tmpfs "$SCRATCH"
layer "$SOURCE" source
layer "$TREE" tree
cd "$TREE"
mv "$SOURCE/$CHANGED" changed.c
ln -s "$TREE/changed.c" "$SOURCE/$CHANGED"
printf '%s\\n' '*' '!changed.c' >.gitignore
git init -q
commit() {
    git add changed.c
    git commit -q --allow-empty -m "$1"
}
commit 'the beginning'
git tag v6.11
commit 'nothing of interest'
echo '#error unfinished' >>changed.c
commit 'unfinished: it does not build'
git checkout -q HEAD~1 changed.c
commit 'it builds again'
"$PYTHON" -c "$EDIT"
commit 'moves are refused'
echo >>changed.c
commit 'nothing of interest, either'
git tag v6.12
eval "$START"
eval "$RUN"
"""
"""Mounts source and build under overlays of this process alone, so that both stay as they are."""

_EDIT = f"""
from pathlib import Path
text = Path("changed.c").read_text()
assert text.count({MOVES!r}) == 1
Path("changed.c").write_text(text.replace({MOVES!r}, {WRONG!r}))
"""
_WHO = {
    f"GIT_{role}_{what}": "nobody" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}


@pytest.mark.long
def test_git_bisect_finds_the_commit_in_kernels_that_each_step_builds_and_boots(
    tmp_path: Path,
) -> None:
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is missing: apt install qemu-system-x86")
    if not (TREE / "arch/x86/boot/bzImage").exists():
        pytest.skip("no kernel was built: scripts/lab-kernel small")
    if os.geteuid():
        pytest.skip("mounting an overlay takes root")
    guide = [shown.command for shown in shown_in(ROOT / "docs/howto/bisect.md")]
    start, run = (each for each in guide if each.startswith("git bisect "))
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", _BUILT_ELSEWHERE],
        env={
            **os.environ, **_WHO,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SCRATCH": str(tmp_path), "SOURCE": str((TREE / "source").resolve()),
            "TREE": str(TREE), "CHANGED": CHANGED, "PYTHON": sys.executable,
            "EDIT": _EDIT, "START": start, "RUN": run,
        },
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    found = done.stdout.partition("is the first bad commit")[2]
    assert re.search(r"^    moves are refused$", found, re.MULTILINE), done.stdout[-5000:]
