"""Every command that a document shows in a block is run, in order, and prints what is shown."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, ROOT, Shown, shown_in

_TIME_LIMIT_S = 60
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

ELSEWHERE = {
    r"\bgit (clone|bisect)\b": "fetches, or builds, what is not here",
    r"^(pip|pipx|apt) install\b": "tests/packaging installs the wheel",
    r"^\./scripts/vmm check$": "the same as in docs/howto/host.md",
    r"^\./scripts/test\b": "these tests are what it runs",
    r"^(\./scripts/)?vmm lab (run|matrix|diff)\b": "tests/lab_vm boots a kernel",
    r"^make -C ~/linux\b": "builds a kernel",
    r"\bvng\b": "tests/lab_vm/test_virtme.py runs one of them",
    r"^kubectl\b": "tests/unit/test_examples.py holds the manifest against Kubernetes' schema",
    r"^tmt\b": "tests/kvm/test_engines.py runs it",
    r"^dask\b|--dask\b": "tests/kvm/test_fleet.py runs a cluster of Dask's",
    r"--white-box\b|judge h.jsonl": "tests/kvm/test_white_box.py; needs debug information",
    r"\bqemu-system": "tests/kvm/test_record.py records QEMU",
    r"^cat step$": "shows a script for git bisect",
}
"""What CI lacks, by command, and what stands in for it."""

_OF_THEIR_OWN = {"README.md", "docs/traces.md", "docs/lab.md", "docs/whitebox.md"}
"""Documents that show output of other hosts and kernels: their commands are run, no more."""


def why_elsewhere(command: str) -> str:
    """Return why a command is not run here, or nothing."""
    return next((why for what, why in ELSEWHERE.items() if re.search(what, command)), "")


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


COMMANDS_SHOWN = [shown for document in DOCUMENTS for shown in shown_in(document)]


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(each, marks=pytest.mark.long if "howto" in each.document else (), id=str(each))
        for each in COMMANDS_SHOWN
    ],
)
def test_a_command_that_is_shown_does_what_is_said(shown: Shown, folders: dict[str, Path]) -> None:
    why = why_elsewhere(shown.command)
    if why:
        pytest.skip(f"{shown.command}: {why}")
    done = subprocess.run(
        ["bash", "-c", shown.command],
        cwd=folders[shown.document],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VMM_VENV": "",
            "LANG": "C.UTF-8",
        },
        capture_output=True,
        text=True,
        timeout=_TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == shown.status, done.stdout + done.stderr
    if shown.printed and shown.document not in _OF_THEIR_OWN:
        printed = done.stdout or (done.stderr if shown.status else "")
        assert shows(shown.printed, printed), doctest.OutputChecker().output_difference(
            doctest.Example(shown.command, shown.printed), printed, _FLAGS
        )


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


def test_what_is_run_elsewhere_is_shown_somewhere() -> None:
    for what in ELSEWHERE:
        assert any(re.search(what, shown.command) for shown in COMMANDS_SHOWN), what


def test_the_tutorial_and_the_guides_show_commands() -> None:
    documents = {shown.document for shown in COMMANDS_SHOWN}
    guides = {f"docs/howto/{path.name}" for path in (ROOT / "docs/howto").glob("*.md")}
    assert {"README.md", "docs/tutorial.md", *guides} <= documents
