"""The signals that end a run."""

import signal

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Sent by a person, a batch system, and a terminal that closes."""


class SignalledError(KeyboardInterrupt):
    """What handlers of these signals raise.

    If KeyboardInterrupt itself leaves an ``exec()`` of text, by which dataclasses make methods, a
    program that was started by ``python -m`` ends with SIGINT in place of its status, though it
    was caught.
    """


def release() -> None:
    """Unblock the signals, which were blocked since the program began. Raises KeyboardInterrupt.

    They are blocked until the command can write an interruption to its result: before that, an old
    result would stay, and look like that of this run.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)


def is_interruption(error: BaseException | None) -> bool:
    """Whether an error stems from a KeyboardInterrupt: Python wraps one in `__set_name__`."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None
