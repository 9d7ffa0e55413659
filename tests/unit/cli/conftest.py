"""What tests of several commands take."""

import signal
from collections.abc import Iterator

import pytest

from vmm.host.signals import ENDING_SIGNALS


@pytest.fixture
def waiting() -> Iterator[None]:
    """A signal waits, as it does where it came before the command had begun."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    signal.raise_signal(signal.SIGTERM)
    yield
    signal.sigtimedwait(ENDING_SIGNALS, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
