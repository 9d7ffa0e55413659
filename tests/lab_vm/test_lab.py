"""Boots Debian's kernel under emulated SVM: what `vmm lab run` promises, end to end.

Skipped, by name, where a package is missing or Debian's archive is out of reach.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmm.lab.debian import fetched
from vmm.lab.errors import LabError
from vmm.lab.machine import QEMU, Backend, Job, Machine
from vmm.lab.run import Ending, Listener, prepared, running, side_by_side

KERNEL = "debian-6.12"


@pytest.fixture(scope="module")
def kernel() -> str:
    """Return a kernel that can be booted here."""
    if not shutil.which(QEMU):
        pytest.skip(f"{QEMU} is missing: apt install qemu-system-x86")
    try:
        fetched(KERNEL, lambda text: None)
    except LabError as error:
        pytest.skip(f"{KERNEL}: {error}")
    return KERNEL


def lab(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the lab."""
    command = [sys.executable, "-P", "-m", "vmm.cli", "lab", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_check_in_a_machine(kernel: str, tmp_path: Path) -> None:
    words = ("run", "--kernel", kernel, "--backend", "svm", "--param", "kvm_amd.npt=0")
    names = ("move-then-delete-then-create", "move-between-two")
    done = lab(tmp_path, *words, "--", "check", "--json", "result.json", *names)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert [each["status"] for each in result["scenarios"]] == ["passed", "passed"]
    assert "2 scenarios: 2 passed" in done.stdout
    assert "svm kvm_amd.npt=0" in done.stderr
    assert result["host"]["modules"]["kvm_amd"]["npt"] == "N"


def test_the_next_machine_begins_where_an_equal_one_waited(kernel: str, tmp_path: Path) -> None:
    words = ("run", "--kernel", kernel, "--backend", "svm", "--param", "kvm_amd.npt=0")
    done = lab(tmp_path, *words, "--", "check", "move-up")
    if has_booted(done):  # The test before this one was left out, or somebody else has begun.
        done = lab(tmp_path, *words, "--", "check", "move-up")
    assert done.returncode == 0, done.stderr
    assert "1 scenario: 1 passed" in done.stdout
    assert not has_booted(done)


def has_booted(done: subprocess.CompletedProcess[str]) -> bool:
    """Return whether the machine of a run has booted, and did not begin with a state."""
    folder = done.stderr.rsplit("logs: ", 1)[1].strip()
    return "Linux version" in Path(folder, "kernel.log").read_text()


def test_a_termination_leaves_no_process(kernel: str, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "vmm.cli", "lab", "run", "--kernel", kernel]
    command += ["--backend", "svm", "--", "info"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert "Linux 6.12" in process.stderr.readline()
        while not (emulators := emulators_of(tmp_path)):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 3
    assert len(emulators) == 1
    assert not emulators_of(tmp_path)


def emulators_of(folder: Path) -> list[int]:
    """Return the emulators that share a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if words.startswith(QEMU.encode()) and f"path={folder},".encode() in words:
            found.append(int(path.parent.name))
    return found


def in_machine(kernel: str, folder: Path, script: str, limit_s: float = 120) -> tuple[Ending, str]:
    """Run a shell script in a machine; return how it ended, and what it printed."""
    machine = Machine(fetched(kernel, print), Backend.SVM, limit_s=limit_s)
    logs, printed = folder / "logs", list[bytes]()
    logs.mkdir()
    job = Job(("/bin/sh", "-c", script), folder, {"PATH": "/usr/bin:/bin"})
    ready = prepared(machine, job)
    (ending,) = side_by_side([running(ready, job, logs, Listener(printed.append, printed.append))])
    return ending, b"".join(printed).decode()


def test_a_panic_in_the_middle_is_a_difference(kernel: str, tmp_path: Path) -> None:
    script = "echo one > kept; echo before; echo c > /proc/sysrq-trigger; sleep 100"
    ending, printed = in_machine(kernel, tmp_path, script)
    assert ending.status == 1
    assert "sysrq triggered crash" in ending.why
    assert "before" in printed
    assert (tmp_path / "kept").read_text() == "one\n", "what was written before is kept"


def test_a_machine_that_never_ends_is_given_up(kernel: str, tmp_path: Path) -> None:
    ending, _ = in_machine(kernel, tmp_path, "sleep 1000", limit_s=6)
    assert ending.status == 3
    assert "gave up after 6 s" in ending.why
    assert not emulators_of(tmp_path)
