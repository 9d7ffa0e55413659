"""Child processes: how each one ended is known, whoever is first to notice."""

import errno
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from kvm_abi import raw
from vmm.host.child import Child, fork
from vmm.host.cpus import stay_on
from vmm.host.signals import ENDING_SIGNALS
from vmm.scenario.endings import why_failed

Body = Callable[[Connection], None]


def kill_itself(_: Connection) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(_: Connection) -> None:
    raise SystemExit(1)


def wait_to_be_killed(_: Connection) -> None:
    signal.pause()


@pytest.mark.parametrize(
    ("body", "how"),
    [(kill_itself, "died: SIGKILL"), (fail, "died: exit status 70"), (lambda _: None, "")],
)
def test_end_of_the_connection_is_followed_by_how_it_died(body: Body, how: str) -> None:
    for _ in range(20):  # Its files are closed before it can be waited for.
        child = Child.start(body)
        with pytest.raises(EOFError):
            child.connection.recv_bytes()
        assert child.end() == how
        assert child.end() == ""


def test_process_that_goes_on_is_killed() -> None:
    child = Child.start(wait_to_be_killed)
    assert not child.answered(0)
    assert child.stack().startswith("kernel stack")
    assert child.end() == ""
    assert "not readable" in child.stack()


def test_messages_go_both_ways() -> None:
    child = Child.start(lambda theirs: theirs.send_bytes(theirs.recv_bytes() * 2))
    child.connection.send_bytes(b"ab")
    assert child.answered(10)
    assert child.connection.recv_bytes() == b"abab"
    child.end()


def test_interruption_is_the_parents_to_answer() -> None:
    def interrupted(theirs: Connection) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        theirs.send_bytes(b"alive")

    child = Child.start(interrupted)
    assert child.connection.recv_bytes() == b"alive"
    child.end()


def _is_there(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while _is_there(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not _is_there(pid)


def test_no_process_outlives_the_one_that_forked_it() -> None:
    def have_a_child(to: Connection) -> None:
        pid = fork()
        if pid == 0:
            signal.pause()
        to.send_bytes(str(pid).encode())
        signal.pause()

    child = Child.start(have_a_child)
    grandchild = int(child.connection.recv_bytes())
    assert _is_there(grandchild)
    child.end()
    assert _wait_until_gone(grandchild)


def test_a_parent_that_was_dead_before_the_kernel_was_asked_is_noticed() -> None:
    def die(_: Connection) -> None:
        raw.die_with_parent(os.getpid())  # Any other process than the one that forked it.

    child = Child.start(die)
    with pytest.raises(EOFError):
        child.connection.recv_bytes()
    assert child.end() == "died: SIGKILL"


@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_a_child_leaves_the_end_of_a_run_to_its_parent(number: int) -> None:
    def signal_itself(to: Connection) -> None:
        os.kill(os.getpid(), number)
        to.send_bytes(b"alive")

    child = Child.start(signal_itself)
    assert child.connection.recv_bytes() == b"alive"
    child.end()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("a mistake"), "internal error: Traceback"),
        (OSError(errno.EIO, "Input/output error"), "the host: Input/output error"),
    ],
)
def test_what_a_child_fails_by_is_told_in_the_end(
    error: Exception, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail_by(_: Connection) -> None:
        raise error

    child = Child.start(fail_by, explain=why_failed)
    with pytest.raises(EOFError):
        child.connection.recv_bytes()
    how = child.end()
    assert how.startswith(said)
    assert str(error) in how or isinstance(error, OSError)
    assert capfd.readouterr().err == ""


def test_a_child_that_says_too_much_is_cut() -> None:
    def fail_at_length(_: Connection) -> None:
        raise ZeroDivisionError("x" * 100_000 + "the end")

    child = Child.start(fail_at_length)
    assert child.answered(10)
    how = child.end()
    assert how.startswith("internal error: ")
    assert how.endswith("the end\n")
    assert len(how) == 1 << 16


def test_a_child_that_cannot_be_prepared_runs_nothing_of_its_parents(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def deny(_: int) -> None:
        raise PermissionError(errno.EPERM, "prctl(PR_SET_PDEATHSIG): Operation not permitted")

    monkeypatch.setattr(raw, "die_with_parent", deny)
    child = Child.start(lambda theirs: theirs.send_bytes(b"ran"))
    with pytest.raises(EOFError):
        child.connection.recv_bytes()
    assert child.end() == "the host: prctl(2) is denied to a forked process"
    assert capfd.readouterr().err == ""


def test_a_child_that_another_waited_for_has_an_end_that_is_lost() -> None:
    child = Child.start(lambda _: None)
    os.waitpid(-1, 0)
    assert child.end().startswith("the host: how a child ended is lost")
    assert child.end() == ""


@pytest.mark.parametrize(("body", "how"), [(kill_itself, "died: SIGKILL"), (lambda _: None, "")])
def test_the_end_is_known_without_a_pidfd(
    monkeypatch: pytest.MonkeyPatch, body: Body, how: str
) -> None:
    def deny(_: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", deny)
    child = Child.start(body)
    with pytest.raises(EOFError):
        child.connection.recv_bytes()
    assert child.end() == how
    going_on = Child.start(wait_to_be_killed)
    assert going_on.end() == ""


def spin(_: Connection) -> None:
    stay_on({min(os.sched_getaffinity(0))})
    while True:
        pass


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not count")
def test_time_for_which_it_waits_for_a_cpu_is_known() -> None:
    both = [Child.start(spin), Child.start(spin)]
    deadline = time.monotonic() + 20
    while sum(child.starved_s() for child in both) < 0.1 and time.monotonic() < deadline:
        time.sleep(0.05)
    waited = sum(child.starved_s() for child in both)
    for child in both:
        child.end()
    assert waited >= 0.1
    assert both[0].starved_s() == 0.0
