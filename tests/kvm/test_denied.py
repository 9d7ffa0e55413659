"""Hosts that deny calls of our own: they are named, or done without, and never blamed on KVM."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kvm_abi.uapi import Ioctl
from tests.denied import Call, deny
from tests.zygote import vmm

ROOT = Path(__file__).parents[2]
COMMANDS = (
    ("check", "create-one-page", "other-vms-held-by-a-child"),
    ("run", "create-one-page"),
    ("fuzz", "--scenarios", "8", "--jobs", "2"),
)


def ignore_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def ended(
    command: tuple[str, ...], folder: Path, prepare: Callable[[], object]
) -> "subprocess.CompletedProcess[str]":
    """Run a command on such a host. `vmm check` meets it from its start, others when they begin."""
    if command[0] != "check":
        return vmm(*command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, prepare=prepare)
    return subprocess.run(
        (sys.executable, "-P", "-m", "vmm.cli", *command),
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    "prepare",
    [
        partial(deny, Call.PIDFD_OPEN, errno.ENOSYS),
        partial(deny, Call.SCHED_SETAFFINITY, errno.EPERM),
        ignore_children,
    ],
    ids=["pidfd_open", "sched_setaffinity", "SIGCHLD"],
)
def test_what_a_run_can_do_without_is_done_without(
    tmp_path: Path, command: tuple[str, ...], prepare: Callable[[], None]
) -> None:
    result = ended(command, tmp_path, prepare)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_child_that_may_not_be_prepared_is_the_hosts(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    result = ended(command, tmp_path, partial(deny, Call.PRCTL, errno.EPERM))
    assert result.returncode == 3, result
    assert "the host: prctl(2) is denied to a forked process" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_child_that_may_not_be_prepared_writes_no_result_of_its_own(tmp_path: Path) -> None:
    command = ("run", "create-one-page", "--json", "result.json")
    ended(command, tmp_path, partial(deny, Call.PRCTL, errno.EPERM))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["exit_status"] == 3
    assert "prctl(2)" in json.dumps(result)


def test_memory_that_cannot_be_unmapped_is_the_hosts(tmp_path: Path) -> None:
    result = ended(COMMANDS[1], tmp_path, partial(deny, Call.MUNMAP, errno.ENOMEM))
    assert result.returncode == 3
    assert "the host: munmap: Cannot allocate memory" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("call", [Call.LINKAT, Call.FCHMOD])
def test_a_file_system_with_fewer_calls_takes_a_result(tmp_path: Path, call: Call) -> None:
    command = ("run", "create-one-page", "--json", "result.json")
    result = ended(command, tmp_path, partial(deny, call, errno.EPERM))
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert json.loads((tmp_path / "result.json").read_text())["exit_status"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.EXDEV])
def test_a_result_that_cannot_be_put_in_place_is_the_hosts(tmp_path: Path, number: int) -> None:
    command = ("run", "create-one-page", "--json", "result.json")
    result = ended(command, tmp_path, partial(deny, Call.RENAME, number))
    assert result.returncode == 3, result
    assert result.stderr == f"vmm: the host: result.json: {os.strerror(number)}\n"
    assert "PASSED" in result.stdout
    assert list(tmp_path.iterdir()) == []


GROUPS = Path("/sys/fs/cgroup/pids")


@pytest.fixture
def few_processes(request: pytest.FixtureRequest) -> Iterator[Callable[[], object]]:
    """Lets the process that calls it, and what it starts, be so many processes at most."""
    group = GROUPS / f"vmm-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "pids.max").write_text(str(request.param))
    except OSError:
        pytest.skip("needs the right to make a control group of version 1 for processes")

    yield partial((group / "cgroup.procs").write_text, "0")
    deadline = time.monotonic() + 20
    while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    group.rmdir()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("few_processes", [2], indirect=True)
def test_a_vcpu_that_gets_no_process_is_the_hosts(
    tmp_path: Path, command: tuple[str, ...], few_processes: Callable[[], object]
) -> None:
    result = ended(command, tmp_path, few_processes)
    assert result.returncode == 3, result
    assert "can be started (ulimit -u, pids.max)" in result.stdout + result.stderr


@pytest.mark.parametrize("few_processes", [6], indirect=True)
def test_a_race_whose_threads_cannot_all_be_started_is_the_hosts(
    tmp_path: Path, few_processes: Callable[[], object]
) -> None:
    names = ("racing-move", "racing-delete-and-create", "racing-clear")
    result = ended(("check", *names, "--jobs", "1"), tmp_path, few_processes)
    assert result.returncode == 3, result
    assert "the host: can't start new thread" in result.stdout
    assert "died" not in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_an_ioctl_that_a_filter_denies_is_no_answer_of_kvm(
    tmp_path: Path, command: tuple[str, ...], number: int
) -> None:
    denied = partial(deny, Call.IOCTL, number, int(Ioctl.SET_USER_MEMORY_REGION))
    result = ended(command, tmp_path, denied)
    said = result.stdout + result.stderr
    assert result.returncode == 3, said
    assert "the host: KVM_SET_USER_MEMORY_REGION is denied by a filter of system calls" in said
    assert "DIFFERS" not in said


def test_fallocate_that_a_filter_denies_is_no_answer_of_kvm(tmp_path: Path) -> None:
    command = ("run", "hole-in-the-file-of-a-vm-that-is-gone")
    result = ended(command, tmp_path, partial(deny, Call.FALLOCATE, errno.EPERM))
    if "needs" in result.stdout + result.stderr:
        pytest.skip("needs guest_memfd")
    assert result.returncode == 3, result
    assert "the host: fallocate: Operation not permitted" in result.stdout + result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_which_cpus_there_are_need_not_be_said(tmp_path: Path, command: tuple[str, ...]) -> None:
    result = ended(command, tmp_path, partial(deny, Call.SCHED_GETAFFINITY, errno.EPERM))
    assert (result.returncode, result.stderr) == (0, ""), result.stdout


def test_a_call_of_our_own_that_is_denied_is_named(tmp_path: Path) -> None:
    command = ("run", "follow-a-truncated-file")
    result = ended(command, tmp_path, partial(deny, Call.MEMFD_CREATE, errno.EPERM))
    assert result.returncode == 3, result
    assert "the host: memfd_create: Operation not permitted" in result.stdout + result.stderr
