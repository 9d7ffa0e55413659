"""The signals that end a run, whoever sends them."""

import signal

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What a person, a batch system and a terminal that goes away send."""


def is_interruption(error: BaseException | None) -> bool:
    """Whether an error is what Python made of a KeyboardInterrupt, as it does in `__set_name__`."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None
