"""Starts the command, which ends with one line and a documented status whatever comes meanwhile.

Python needs a while until the command's own modules are there. A signal that comes meanwhile, or
has waited since scripts/vmm, waits until the command can tell of it in its result.
"""

import gc
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from vmm.host.signals import ENDING_SIGNALS
from vmm.verdict.statuses import INCONCLUSIVE, INTERNAL_ERROR, PASSED

_COLLECT_AFTER = 100_000
"""Histories are many objects without cycles: looking for cycles often takes a tenth of a run."""


def _end(number: int, frame: FrameType | None) -> NoReturn:
    try:
        os.write(2, b"vmm: interrupted\n")
    finally:
        os._exit(INCONCLUSIVE)


def _open_standard_streams() -> None:
    """Let standard streams that were closed lead nowhere, so that no file of ours takes a place.

    Python has no stream for them, and fails where one is flushed, with a status of its own.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest number that is free.
            os.set_inheritable(fd, True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def run() -> NoReturn:
    """Run the command, and end the process with its status."""
    _open_standard_streams()
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1) has it so.
            signal.signal(number, _end)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    gc.set_threshold(_COLLECT_AFTER)
    status: object = PASSED
    try:
        from vmm.cli.main import main

        main(prog_name="vmm")
    except SystemExit as ended:
        status = ended.code
    except OSError as error:  # No module can be read any more, or no line be written.
        status = INCONCLUSIVE
        with suppress(OSError):
            os.write(2, f"vmm: the host: {error.strerror}\n".encode())
    except ImportError as error:  # Python's own status would be 1: a verdict on the kernel.
        status = INTERNAL_ERROR
        with suppress(OSError):
            os.write(2, f"vmm: internal error: {error}\n".encode(errors="replace"))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            status = INCONCLUSIVE
    for number in ENDING_SIGNALS:  # All is said, and Python would let them end it by their default.
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status if isinstance(status, int) else PASSED)


if __name__ == "__main__":
    run()
