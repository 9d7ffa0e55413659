"""The signals that end a run, whoever sends them."""

import signal

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What a person, a batch system and a terminal that goes away send."""
