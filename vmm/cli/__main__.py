"""Entry point: whatever happens, the command ends with one line and a documented exit status.

Nothing of ours is imported before a failure of that can be told: Python's own status would be 1,
which is that of a kernel that differs. This module itself is so small that a full disk takes it
whole, or not at all, when Python has compiled it.
"""

import os
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_INCONCLUSIVE = 3
_INTERNAL_ERROR = 70


def run() -> "NoReturn":
    """Run the command, and end the process with its status."""
    # They wait until the command can tell of them: see `vmm.host.signals`.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        from vmm.cli.start import run as run_command
    except ImportError as error:
        _end(_INTERNAL_ERROR, f"internal error: {error}")
    except EOFError as error:  # A full disk has cut it off.
        _end(_INCONCLUSIVE, f"the host: a compiled module: {error}: remove the __pycache__")
    except (OSError, MemoryError, SystemError) as error:
        _end(_INCONCLUSIVE, f"the host: a module cannot be read: {error}")
    run_command()


def _end(status: int, why: str) -> "NoReturn":
    with suppress(OSError):
        os.write(2, f"vmm: {why}\n".encode(errors="backslashreplace"))
    sys.exit(status)


if __name__ == "__main__":
    run()
