"""Child processes: how each one ended is known, whoever is first to notice."""

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest

from vmm.host.child import Child

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
