"""Talks to QEMU (QMP) to save and to restore the state of a machine, except for its memory."""

import json
import shlex
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmm.lab.errors import LabError

_ANSWER_S = 30.0
_KEEP_S = 60.0
_LOOK_S = 0.02
_ENDS = ("completed", "failed", "cancelled")
_AT_ONCE = 1 << 40
"""Bytes a second: no limit in practice."""


class Monitor:
    """Our end of a connection to QEMU's monitor in mode "control"."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_ANSWER_S)
        self._lines = connection.makefile("rwb")
        self._is_new = True

    def keep(self, path: Path, while_stopped: Callable[[], None]) -> None:
        """Write the machine's state to a file, call something, and let the machine go on.

        Raises LabError.
        """
        where = f"exec:cat > {shlex.quote(str(path))}"
        self._leave_memory_out()
        self._ask("migrate-set-parameters", {"max-bandwidth": _AT_ONCE})
        self._ask("migrate", {"uri": where})
        end = time.monotonic() + _KEEP_S
        is_late = False
        while (now := self._ask("query-migrate", {}))["status"] not in _ENDS:
            if time.monotonic() > end and not is_late:
                is_late = True
                # While it is under way, no folder of the host's can be mounted (EBUSY).
                self._ask("migrate_cancel", {})
            time.sleep(_LOOK_S)
        if now["status"] == "failed":
            raise LabError(f"QEMU cannot write the machine's state: {now.get('error-desc', '?')}")
        try:
            if not is_late:
                while_stopped()
        finally:
            self._ask("cont", {})
        if is_late:
            raise LabError("QEMU takes too long to write the machine's state")

    def restore(self, path: Path) -> None:
        """Let a machine that waits for its state go on from it. Raises LabError."""
        self._leave_memory_out()
        self._ask("migrate-incoming", {"uri": f"exec:cat {shlex.quote(str(path))}"})

    def _leave_memory_out(self) -> None:
        """Leave out the memory that is a file; QEMU's manual calls such machines templates."""
        shared = {"capability": "x-ignore-shared", "state": True}
        self._ask("migrate-set-capabilities", {"capabilities": [shared]})

    def _ask(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a command. Raises LabError."""
        if self._is_new:
            self._is_new = False
            self._lines.readline()  # The greeting.
            self._ask("qmp_capabilities", {})
        try:
            said = json.dumps({"execute": command, "arguments": arguments})
            self._lines.write(said.encode() + b"\n")
            self._lines.flush()
            while line := self._lines.readline():
                answer = json.loads(line)
                if "error" in answer:
                    raise LabError(f"QEMU: {command}: {answer['error'].get('desc', '?')}")
                if "return" in answer:
                    return dict(answer["return"])
        except (OSError, ValueError) as error:
            raise LabError(f"QEMU: {command}: {error}") from None
        raise LabError(f"QEMU: {command}: it has ended")
