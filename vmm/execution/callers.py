"""Forked children that make calls for this process; a failure of one is raised here."""

import errno
import os
import signal
import traceback
from collections.abc import Callable
from typing import Self

import msgspec

from kvm_abi.raw import KvmError, WrongAnswerError
from vmm.host.child import fork
from vmm.scenario.endings import is_short
from vmm.scenario.history import SetUpRefused

_FAILED = 255
"""The exit status of a child that has failed; any other is the result of its calls."""

_MOST_BYTES = 1 << 16
"""What a pipe takes without a reader."""


class CallerDiedError(Exception):
    """Something killed the child that was to make a call, with a signal of this ``name``."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}, in the child that was to make the call")


class NoLifeError(Exception):
    """A guest that should count for ever has stopped."""


class _Failure(msgspec.Struct, frozen=True):
    """How a process failed: one of these."""

    refused: SetUpRefused | None = None
    stopped: str = ""
    short: int = 0
    trace: str = ""


def set_up_refused(error: KvmError | WrongAnswerError) -> SetUpRefused:
    """Return the outcome of an operation that failed in one of the executor's own calls."""
    if isinstance(error, WrongAnswerError):
        return SetUpRefused(error.call, error.arguments, answer=error.answer)
    return SetUpRefused(error.call, error.arguments, error.errno or 0)


class Caller:
    """A forked child that makes calls. Killed, if it still runs, at the end of the block."""

    def __init__(self, calls: Callable[[], int]) -> None:
        """Fork; the child ends with the status, below 255, that ``calls`` returns."""
        self._told, telling = os.pipe()
        try:
            self._pid = fork(denied=lambda error: _failed(telling, error))
            if self._pid == 0:
                status = _FAILED
                try:
                    status = calls()
                except BaseException as error:
                    status = _failed(telling, error)
                finally:
                    os._exit(status)
        except BaseException:
            os.close(self._told)
            raise
        finally:
            os.close(telling)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._told)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def status(self) -> int:
        """Wait until the child ends; return its status.

        Raises what the child has failed by, and `CallerDiedError` if something killed it.
        """
        pid, self._pid = self._pid, 0
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status < 0 or status == _FAILED:
            raise _failure_of(self._told, status)
        return status

    def check(self) -> None:
        """Raise what ``status`` raises, if the child has ended."""
        if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            status = self.status()
            raise _failure_of(self._told, status)


def _failed(pipe: int, error: BaseException) -> int:
    """Tell the parent how this process fails, and return its exit status."""
    _tell(pipe, error)
    return _FAILED


def _tell(pipe: int, error: BaseException) -> None:
    """Tell the other end of a pipe how this process fails."""
    match error:
        case KvmError() | WrongAnswerError():
            failure = _Failure(set_up_refused(error))
        case NoLifeError():
            failure = _Failure(stopped=str(error))
        case _ if is_short(error):
            number = error.errno if isinstance(error, OSError) else None
            failure = _Failure(short=number or errno.ENOMEM)
        case _:
            trace = "".join(traceback.format_exception(error))
            failure = _Failure(trace=trace[-_MOST_BYTES // 4 :])
    os.write(pipe, msgspec.json.encode(failure))


def _failure_of(pipe: int, status: int) -> Exception:
    """Return what to raise for a process that has ended, from the other end of its pipe.

    ``status`` is its exit status, or minus the number of the signal that killed it.
    """
    data = os.read(pipe, _MOST_BYTES)
    if not data:
        if status < 0:
            return CallerDiedError(signal.Signals(-status).name)
        return RuntimeError(f"the forked child failed: exit status {status}")
    failure = msgspec.json.decode(data, type=_Failure)
    if failure.refused is not None:
        refused = failure.refused
        if refused.answer:
            return WrongAnswerError(refused.call, refused.answer, refused.arguments)
        return KvmError(refused.errno, refused.call, None, refused.arguments)
    if failure.stopped:
        return NoLifeError(failure.stopped)
    if failure.short:
        return OSError(failure.short, os.strerror(failure.short))
    return RuntimeError(f"the forked child failed\n{failure.trace}")
