import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from vmm.lab.cells import Cell, Task, cells_of, run_all
from vmm.lab.machine import Backend


def task(tmp_path: Path, label: str, code: str) -> Task:
    return Task(label, (sys.executable, "-c", code), tmp_path / label)


def test_a_cell_for_each_kernel_and_each_mmu() -> None:
    cells = cells_of(["debian", "/src/linux/"], [Backend.SVM, Backend.VMX])
    assert [cell.name for cell in cells] == [
        *("debian-svm-npt=1", "debian-svm-npt=0"),
        *("debian-vmx-ept=1", "debian-vmx-ept=0", "debian-vmx-unrestricted_guest=0"),
        *("linux-svm-npt=1", "linux-svm-npt=0"),
        *("linux-vmx-ept=1", "linux-vmx-ept=0", "linux-vmx-unrestricted_guest=0"),
    ]
    options = Cell("k", Backend.SVM, ("kvm_amd.npt=0",)).options()
    assert options == [
        *("--kernel", "k", "--backend", "svm", "--at-once", "1", "--param", "kvm_amd.npt=0")
    ]


def test_every_task_has_its_status_and_its_output(tmp_path: Path) -> None:
    tasks = [task(tmp_path, str(n), f"print({n}); raise SystemExit({n})") for n in range(4)]
    told: list[tuple[str, int]] = []
    statuses = run_all(tasks, 2, lambda each, status, _: told.append((each.label, status)))
    assert statuses == {"0": 0, "1": 1, "2": 2, "3": 3}
    assert dict(told) == statuses
    assert (tmp_path / "3" / "output.txt").read_text() == "3\n"


def test_no_more_run_at_once_than_are_allowed(tmp_path: Path) -> None:
    code = (
        "import pathlib, time; mine = pathlib.Path('../running'); "
        "mine.mkdir(); time.sleep(0.1); mine.rmdir()"
    )
    tasks = [task(tmp_path, str(n), code) for n in range(3)]
    assert set(run_all(tasks, 1, lambda *_: None).values()) == {0}


def test_an_interruption_leaves_none_of_them(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    tasks = [task(tmp_path, "long", "import time; time.sleep(600)"), task(tmp_path, "short", "")]
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all(tasks, 2, interrupt)
    assert time.monotonic() - start < 60
    mine = [child for child in psutil.Process().children() if "time.sleep(600)" in child.cmdline()]
    assert not mine


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_a_kill_leaves_none_of_them(tmp_path: Path) -> None:
    long = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    matrix = (
        "import pathlib, sys\n"
        "from vmm.lab.cells import Task, run_all\n"
        f"task = Task('long', (sys.executable, '-c', {long!r}), pathlib.Path({str(tmp_path)!r}))\n"
        "run_all([task], 1, print)\n"
    )
    output = tmp_path / "output.txt"
    process = subprocess.Popen([sys.executable, "-c", matrix])
    try:
        while not output.exists() or not output.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        child = psutil.Process(int(output.read_text()))
    finally:
        process.kill()
        process.wait()
    try:
        child.wait(20)
    finally:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def test_kernels_of_one_name_have_cells_of_their_own() -> None:
    cells = cells_of(["/a/linux", "/b/linux", "/a/linux"], [Backend.SVM])
    assert [(cell.kernel, cell.name) for cell in cells] == [
        ("/a/linux", "linux-svm-npt=1"),
        ("/a/linux", "linux-svm-npt=0"),
        ("/b/linux", "linux-2-svm-npt=1"),
        ("/b/linux", "linux-2-svm-npt=0"),
    ]


def test_somebody_is_told_which_are_under_way(tmp_path: Path) -> None:
    tasks = [task(tmp_path, str(n), "import time; time.sleep(0.3)") for n in range(3)]
    seen: list[tuple[str, ...]] = []
    run_all(
        tasks, 2, lambda *_: None, lambda under_way: seen.append(tuple(t.label for t in under_way))
    )
    assert seen[0] == ("0", "1")
    assert seen[-1] == ("2",)
