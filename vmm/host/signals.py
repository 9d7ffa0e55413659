"""The signals that end a run, whoever sends them."""

import signal

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What a person, a batch system and a terminal that goes away send."""


def release() -> None:
    """Let the signals come that have waited since the program began. Raises KeyboardInterrupt.

    They wait until an interruption can be told in the command's result: until then an old one would
    stay, as if it were of this run.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)


def is_interruption(error: BaseException | None) -> bool:
    """Whether an error is what Python made of a KeyboardInterrupt, as it does in `__set_name__`."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None
