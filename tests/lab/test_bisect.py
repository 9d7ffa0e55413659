"""`git bisect run` itself, with the C program and the line of docs/howto/bisect.md."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.lab import environment

GUIDE = Path(__file__).parents[2] / "docs/howto/bisect.md"
COMMITS = 7
UNBUILDABLE = 3
FIRST_BAD = 5


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    done = subprocess.run(
        ["git", *identity, *arguments],
        cwd=folder, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.long
def test_git_bisect_finds_the_commit_that_made_the_kernel_wrong(tmp_path: Path) -> None:
    (line,) = re.findall(r"^    \$ (\./repro; .*)$", GUIDE.read_text(), re.MULTILINE)
    vmm = Path(sys.executable).parent / "vmm"
    source = tmp_path / "repro.c"
    subprocess.run([vmm, "repro", "move-then-delete-then-create", "-o", source], check=True)
    subprocess.run(["cc", "-o", tmp_path / "repro", source], check=True)

    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "-q")
    (tree / ".gitignore").write_text("repro\n")
    (tree / "repro").symlink_to(tmp_path / "repro")
    for commit in range(1, COMMITS + 1):
        (tree / "wrong").write_text("yes" if commit >= FIRST_BAD else "no")
        (tree / "builds").write_text("no" if commit == UNBUILDABLE else "yes")
        (tree / "number").write_text(str(commit))
        git(tree, "add", ".")
        git(tree, "commit", "-q", "-m", f"commit {commit}")
        git(tree, "tag", f"v{commit}")

    wrong = environment("delete-lost", {})
    exports = " ".join(
        f"export {name}={shlex.quote(value)};"
        for name, value in wrong.items()
        if os.environ.get(name) != value
    )
    step = f"grep -q yes builds || exit 125; if grep -q yes wrong; then {exports} fi; {line}"
    git(tree, "bisect", "start", f"v{COMMITS}", "v1")
    said = git(tree, "bisect", "run", "sh", "-c", step)
    assert "is the first bad commit" in said
    assert f"commit {FIRST_BAD}" in said.partition("is the first bad commit")[2]
