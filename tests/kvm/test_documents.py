"""Every command that a document shows is run, in order, and one in a block prints what is shown.

`tests/documented.py` says what runs here, with what in place of placeholders, and what does not.
"""

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documented import By, run_by
from tests.documents import DOCUMENTS, IN_BLOCKS, IN_SENTENCES, ROOT, Shown

_TIME_LIMIT_S = 300
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

_OF_THEIR_OWN = {"README.md", "docs/traces.md", "docs/lab.md", "docs/whitebox.md"}
"""Documents that show output of other hosts and kernels: such commands are run, no more."""

_CLONED = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": f"url.{ROOT}.insteadOf",
    "GIT_CONFIG_VALUE_0": "https://example.org/memslot-vmm.git",
}
"""Has git clone this checkout in place of the address in the tutorial."""

_PREPARED = (
    "vmm check move-up -q --json RESULT.json --histories A.jsonl",
    "vmm check move-up -q --histories B.jsonl",
    "cp A.jsonl FILE.jsonl",
    "vmm show move-up > SCENARIO.json",
    "vmm bench --work nop --slots 1 --rounds 3 --json OLD.json",
    "cp tests/traces/qemu-q35-seabios.strace TRACE",
    "mkdir -p DIR",
)
"""Makes the files that placeholders name."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each document, in which its commands find what a checkout has."""
    made: dict[str, Path] = {}
    for document in DOCUMENTS:
        name = str(document.relative_to(ROOT))
        folder = made[name] = tmp_path_factory.mktemp(document.stem)
        for each in ("scripts", "examples", "docs", "tests"):
            (folder / each).symlink_to(ROOT / each)
        (folder / "altered.strace").write_text(altered())
    return made


def altered() -> str:
    """Return the trace of docs/traces.md: a call that succeeded is refused in it."""
    lines = (ROOT / "tests/traces/qemu-q35-seabios.strace").read_text().splitlines()
    lines[100] = re.sub(r"= 0$", "= -1 EINVAL (Invalid argument)", lines[100])
    assert lines[100].endswith("EINVAL (Invalid argument)")
    return "".join(f"{line}\n" for line in lines)


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the shell in a document's folder."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env={
            **os.environ,
            **_CLONED,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VMM_VENV": "",
            "LANG": "C.UTF-8",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIME_LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(each, marks=pytest.mark.long if "howto" in each.document else (), id=str(each))
        for each in IN_BLOCKS
        if run_by(each)[0] is By.DOCUMENTS
    ],
)
def test_a_command_that_is_shown_does_what_is_said(shown: Shown, folders: dict[str, Path]) -> None:
    if shown.command.startswith("git clone") and not (ROOT / ".git").exists():
        pytest.skip("only a git checkout can be cloned")
    done = run(shown.command, folders[shown.document])
    assert done.returncode == shown.status, done.stdout + done.stderr
    ours = shown.document not in _OF_THEIR_OWN or "wrong-kernel" in shown.command
    if shown.printed and ours:
        printed = done.stdout or (done.stderr if shown.status else "")
        assert shows(shown.printed, printed), doctest.OutputChecker().output_difference(
            doctest.Example(shown.command, shown.printed), printed, _FLAGS
        )


@pytest.fixture(scope="module")
def with_placeholders(folders: dict[str, Path]) -> dict[str, Path]:
    """The folders of documents, with the files that placeholders name."""
    first, *others = folders.values()
    for command in _PREPARED:
        done = run(command, first)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    for folder in others:
        for each in first.iterdir():
            if not each.is_symlink() and each.name.partition(".")[0].isupper():
                (shutil.copytree if each.is_dir() else shutil.copy)(each, folder / each.name)
    return folders


@pytest.mark.long
@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(each, id=f"{each}-{number}")
        for number, each in enumerate(IN_SENTENCES)
        if run_by(each)[0] in (By.DOCUMENTS, By.FORM)
    ],
)
def test_a_command_in_a_sentence_can_be_given(
    shown: Shown, with_placeholders: dict[str, Path]
) -> None:
    _, command = run_by(shown)
    done = run(command, with_placeholders[shown.document])
    assert done.returncode in (0, 4), f"{command}: {done.stdout}{done.stderr}"  # 4: not here.


def shows(document: str, printed: str) -> bool:
    """Tell whether a document is right about what a command prints.

    A last line of "..." may stand for nothing: some notes depend on what the machine did before.
    """
    forms = {document, document.removesuffix("\n...\n") + "\n"}
    return any(doctest.OutputChecker().check_output(each, printed, _FLAGS) for each in forms)


def test_a_last_line_of_dots_may_stand_for_nothing() -> None:
    assert shows("1 passed\n...\n", "1 passed\n")
    assert shows("1 passed\n...\n", "1 passed\nnote: the kernel has warned before\n")
    assert not shows("1 passed\n...\n", "2 passed\n")
    assert not shows("1 passed\n", "1 passed\nnote: the kernel has warned before\n")


def test_the_tutorial_and_the_guides_show_commands() -> None:
    documents = {shown.document for shown in IN_BLOCKS}
    guides = {f"docs/howto/{path.name}" for path in (ROOT / "docs/howto").glob("*.md")}
    assert {"README.md", "docs/tutorial.md", *guides} <= documents
