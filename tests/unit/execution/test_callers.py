"""A process that acts for this one fails: it is this one's failure, of the same kind."""

import errno
import os
import signal
from typing import NoReturn

import pytest

from kvm_abi.raw import KvmError, WrongAnswerError
from vmm.execution import machine
from vmm.execution.callers import CallerDiedError, NoLifeError, set_up_refused
from vmm.execution.lives import _killed
from vmm.kvm.memory import HostMapping
from vmm.scenario.history import AnyOutcome, Done, Refused

REFUSED = KvmError(errno.EMFILE, "KVM_CREATE_VM", None, "type=0x0")
WRONG = WrongAnswerError("KVM_RUN", "7, and not 0", "x")
FAILURES = [REFUSED, WRONG, NoLifeError("hlt"), OSError(errno.ENOMEM, ""), MemoryError()]


def same(found: BaseException, error: BaseException) -> bool:
    match error:
        case KvmError() | WrongAnswerError():
            assert isinstance(found, KvmError | WrongAnswerError)
            return set_up_refused(found) == set_up_refused(error)
        case NoLifeError():
            return isinstance(found, NoLifeError) and str(found) == str(error)
    return isinstance(found, OSError) and found.errno == errno.ENOMEM


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_failure_is_passed_on_as_it_is(error: Exception) -> None:
    def live_on(signs: HostMapping, alive: int) -> NoReturn:
        raise error

    def call() -> AnyOutcome:
        raise error

    with pytest.raises(Exception) as caught:  # noqa: PT011
        _killed(live_on)
    assert same(caught.value, error)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        machine._in_forked_child(call)
    assert same(caught.value, error)


def test_an_error_of_ours_has_its_traceback() -> None:
    def call() -> AnyOutcome:
        raise ZeroDivisionError("here")

    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*in call.*ZeroDivisionError: here"):
        machine._in_forked_child(call)


def test_a_process_that_something_else_kills_is_no_outcome() -> None:
    def live_on(signs: HostMapping, alive: int) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(CallerDiedError, match="SIGKILL"):
        _killed(live_on)


def test_a_process_that_is_killed_as_it_should_be_leaves_nothing() -> None:
    def live_on(signs: HostMapping, alive: int) -> NoReturn:
        signs.write(0, b"\1")
        os.read(alive, 1)
        os._exit(0)

    before = os.listdir("/proc/self/fd")
    _killed(live_on)
    assert machine._in_forked_child(Done) == Done()
    assert machine._in_forked_child(lambda: Refused(5)) == Refused(5)
    assert os.listdir("/proc/self/fd") == before
