"""Starts the command, and ends the process with its status.

Python takes a while to import the command's modules. A signal that arrives meanwhile, or is blocked
since scripts/vmm, stays blocked until the command can report it in its result.
"""

import gc
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from vmm.cli.output.older import forget, older_results
from vmm.host.signals import ENDING_SIGNALS
from vmm.scenario.endings import is_short, of_the_host
from vmm.verdict.statuses import INCONCLUSIVE, INTERNAL_ERROR, NOTHING_RAN, PASSED

_COLLECT_AFTER = 100_000
"""Histories are many objects without cycles: the usual threshold costs a tenth of a run."""


def _end(number: int, frame: FrameType | None) -> NoReturn:
    try:
        os.write(2, b"vmm: interrupted\n")
    finally:
        os._exit(INCONCLUSIVE)


def _open_standard_streams() -> None:
    """Open closed standard streams on /dev/null, so that no file of ours gets their number.

    Python has no stream object for a closed one, and fails with its own exit status on flushing it.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest free number.
            os.set_inheritable(fd, True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _prepare() -> None:
    """Make this process one in which a command can run."""
    _open_standard_streams()
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # Ignored under nohup(1).
            signal.signal(number, _end)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # If ignored, how a child ended is lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    gc.set_threshold(_COLLECT_AFTER)


def run() -> NoReturn:
    """Run the command, and end the process with its status."""
    status: object = PASSED
    older = older_results(sys.argv[1:])
    try:
        _prepare()
        from vmm.cli.main import main

        main(prog_name="vmm")
    except SystemExit as ended:
        status = ended.code
    except (OSError, EOFError, ImportError, MemoryError, SystemError) as error:
        # Modules can no longer be read, or output not be written.
        is_host = is_short(error) or isinstance(error, OSError)
        status = INCONCLUSIVE if is_host else INTERNAL_ERROR
        line = of_the_host(error) if is_host else f"internal error: {error}"
        with suppress(OSError):
            os.write(2, f"vmm: {line}\n".encode(errors="backslashreplace"))
    if status in (INCONCLUSIVE, NOTHING_RAN, INTERNAL_ERROR):
        forget(older)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            status = INCONCLUSIVE
    for number in ENDING_SIGNALS:  # All is done, and Python restores their default actions.
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # Python would look for cycles among all objects once more before it ends.
    sys.exit(status if isinstance(status, int) else PASSED)
