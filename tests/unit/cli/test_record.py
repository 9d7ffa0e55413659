"""``vmm record``: strace and a VMM that are played by shell scripts."""

import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.played import vmm
from tests.traced import EINVAL, KVM, region


def strace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, status: int = 0) -> None:
    """Put a program in the place of strace that writes lines where strace would."""
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line in lines))
    program = tmp_path / "strace"
    program.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n'
        f'cat {tmp_path}/lines >"$2"\nshift 3\n"$@"\nexit {status}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def test_what_a_command_did_is_judged_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strace(tmp_path, monkeypatch, KVM, "7 ioctl(9, KVM_RUN, 0) = 0", region())
    file, ran = tmp_path / "out", tmp_path / "ran"
    result = vmm("record", "--judge-only", "-o", file, "--", "touch", ran)
    assert result.exit_code == 0
    assert f"recorded 2 lines in {file}\n" in result.output
    assert "PASSED       as traced: 1 event judged by 1 rule" in result.output
    assert file.read_text() == f"{KVM}\n{region()}\n"
    assert ran.exists()


def test_a_full_disk_ends_no_command_that_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strace(tmp_path, monkeypatch, *[region()] * 5000)  # More than a pipe holds.
    ran = tmp_path / "ran"
    result = vmm("record", "--judge-only", "-o", "/dev/full", "--", "touch", ran)
    assert (result.exit_code, ran.exists()) == (3, True)
    assert result.stderr == "vmm: the host: /dev/full: No space left on device\n"


def test_a_difference_and_the_commands_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strace(tmp_path, monkeypatch, KVM, region(result=EINVAL), status=7)
    result = vmm("record", "--judge-only", "true")
    assert result.exit_code == 1
    assert "; the command ended with status 7" in result.output


def test_a_missing_strace_is_one_line_that_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = vmm("record", "true")
    assert result.exit_code == 4
    assert result.output.count("\n") == 1
    assert "apt install strace" in result.output


def test_a_missing_command_and_one_of_which_nothing_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strace(tmp_path, monkeypatch)
    absent = vmm("record", "no-such-vmm")
    assert (absent.exit_code, absent.output) == (2, "vmm: no-such-vmm: no such program\n")
    empty = vmm("record", "true")
    assert empty.exit_code == 4
    assert "strace recorded nothing" in empty.output


def test_a_command_that_makes_no_call_on_a_memslot_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strace(tmp_path, monkeypatch, KVM)
    result = vmm("record", "true")
    assert result.exit_code == 2
    assert result.stderr.endswith("vmm: true made no call on a memslot: is it a VMM, with KVM?\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_a_run_ends_the_command_and_what_it_did_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    strace(tmp_path, monkeypatch, KVM, region())
    ended = "import os, sys, time; os.kill(*map(int, sys.argv[1:])); time.sleep(20)"
    begun = time.monotonic()
    result = vmm(
        *("record", "--judge-only", "--", sys.executable, "-c", ended, os.getpid(), int(number))
    )
    assert "recorded 2 lines" in result.output
    assert "PASSED       as traced" in result.output
    assert time.monotonic() - begun < 10


def test_a_host_that_denies_the_filter_is_told_and_pointers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(requests: object) -> int:
        raise OSError(errno.EBUSY, "seccomp: Device or resource busy")

    monkeypatch.setattr("kvm_abi.notices.notify_of", denied)
    strace(tmp_path, monkeypatch, KVM, region(), "7 ioctl(8, KVM_GET_DIRTY_LOG, 0x7ffd) = 0")
    result = vmm("record", "--judge-only", "true")
    assert result.exit_code == 0
    assert "are not read: the host: [Errno 16] seccomp: Device or resource busy" in result.output
    assert (
        "left out  1 x KVM_GET_DIRTY_LOG, whose arguments the trace does not show in full (line 3)"
        in result.output
    )


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ((), "again     vmm record -o FILE -- true"),
        (("-o", "kept"), "again     vmm replay --judge-only --vm 1 kept"),
        (
            ("--allow-large", "-o", "kept"),
            "again     vmm replay --judge-only --allow-large --vm 1 kept",
        ),
    ],
)
def test_the_command_that_shows_a_difference_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], again: str
) -> None:
    monkeypatch.chdir(tmp_path)
    strace(tmp_path, monkeypatch, KVM, region(result=EINVAL))
    result = vmm("record", "--judge-only", *options, "--", "true")
    assert result.exit_code == 1
    assert f"{again}\n" in result.output
