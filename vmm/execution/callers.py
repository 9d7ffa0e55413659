"""Processes that make calls for this one: how one fails is told to it, and is its own failure."""

import errno
import os
import signal
import traceback

import msgspec

from kvm_abi.raw import KvmError, WrongAnswerError
from vmm.scenario.endings import is_short
from vmm.scenario.history import SetUpRefused

_MOST_BYTES = 1 << 16
"""What a pipe takes without a reader."""


class CallerDiedError(Exception):
    """Something killed the child that was to make a call: the text says which signal."""


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


def tell(pipe: int, error: BaseException) -> None:
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


def failure_of(pipe: int, status: int) -> Exception:
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
