"""Commands of `vmm` in processes that are forked instead of started.

To import the program takes longer than most commands take to run. A server, ``python -m
tests.zygote``, imports it once, and forks a process for each command. Environment, working
directory, standard streams, signals and exit status are those of a process of its own. What tests
say about how the program starts needs one that is started.
"""

import atexit
import base64
import gc
import json
import os
import pickle
import random
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from cffi import FFI

from kvm_abi import raw

ROOT = Path(__file__).parents[1]
_COMMANDS = ("check", "fuzz", "info", "judge", "run")
_USED_BY_THEM = (
    "running.carrying",
    "running.execution",
    "fuzzing",
    "running.history_files",
    "lab.live",
)


def vmm(
    *arguments: object,
    env: Mapping[str, str] = os.environ,
    cwd: Path = ROOT,
    timeout: float = 120.0,
    prepare: Callable[[], object] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a command as ``subprocess.run`` would; what it prints is text.

    ``prepare`` is called in its process before it begins; it is pickled.
    """
    args = list(map(str, arguments))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        request = {
            "args": ["vmm", *args],
            "env": dict(env),
            "cwd": str(cwd),
            "prepare": base64.b64encode(pickle.dumps(prepare)).decode(),
            "streams": [f"/proc/{os.getpid()}/fd/{each.fileno()}" for each in (out, err)],
        }
        status = _server(env.get("LD_PRELOAD", "")).run(request, timeout)
        printed = [each.read().decode() for each in (out, err)]
    return subprocess.CompletedProcess(args, status, *printed)


class _Server:
    """A process that forks one for each command."""

    def __init__(self, preloaded: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            cwd=ROOT,
            env={**os.environ, "LD_PRELOAD": preloaded},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._process.kill)

    def run(self, request: dict[str, Any], timeout: float) -> int:
        """Return the exit status of a command. Raises TimeoutExpired for one that it kills."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            _server.cache_clear()
            self._process.kill()
            raise subprocess.TimeoutExpired(request["args"], timeout)
        return int(self._process.stdout.readline())


_server = cache(_Server)


def _serve() -> dict[str, Any] | None:
    """Fork for each request, and tell how it ended; return the request in the new process."""
    parent = os.getpid()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            raw.die_with_parent(parent)
            request: dict[str, Any] = json.loads(line)
            return request
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def _become(request: dict[str, Any]) -> None:
    """Let this process be as if it had been started for a command."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["args"]
    for fd, path in enumerate((os.devnull, *request["streams"])):
        stream = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(stream, fd)
        os.close(stream)
    random.seed()
    if os.environ.get("WRONG_CALL"):
        ffi = FFI()
        ffi.cdef("void read_wrong_call(void);")
        library: Any = ffi.dlopen(None)
        library.read_wrong_call()
    prepare: Callable[[], object] | None = pickle.loads(base64.b64decode(request["prepare"]))
    if prepare:
        prepare()


def main() -> None:
    """Serve; in each new process, run its command."""
    for name in (*_COMMANDS, *_USED_BY_THEM, "main"):
        import_module(f"vmm.cli.{name}")
    for name in ("vmm.catalogue", "vmm.execution.probe.child"):
        import_module(name)
    from vmm.cli.start import run

    gc.freeze()  # To look at what is inherited, or to take it down in the end, would copy it.
    request = _serve()
    if request is not None:
        _become(request)
        try:
            run()
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
