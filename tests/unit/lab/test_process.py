import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmm.lab.log import LogReader
from vmm.lab.process import Pipes, emulator, watch

NONCE = "01234567"


def watched(
    tmp_path: Path, code: str, limit_s: float = 60, silence_s: float = math.inf
) -> tuple[bytes, bool, float]:
    """Run a program in the place of an emulator; it has the log's path and two pipes."""
    printed: list[bytes] = []
    pipes = Pipes(printed.append, printed.append)
    log, start = tmp_path / "log", time.monotonic()
    command = [sys.executable, "-c", code, str(log), *map(str, pipes.writers)]
    with (tmp_path / "errors").open("wb") as errors, emulator(command, errors, pipes.writers) as it:
        pipes.close_writers()
        _, is_late = watch(it, pipes, LogReader(log, NONCE), limit_s, silence_s)
    pipes.close()
    assert it.returncode is not None
    return b"".join(printed), is_late, time.monotonic() - start


def test_all_that_is_printed_comes_through(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.write(int(sys.argv[2]), b'x' * 200000); "
        "os.write(int(sys.argv[3]), b'y')"
    )
    printed, is_late, _ = watched(tmp_path, code)
    assert (printed.count(b"x"), printed.count(b"y"), is_late) == (200000, 1, False)


def test_time_is_up(tmp_path: Path) -> None:
    _, is_late, seconds = watched(tmp_path, "import time; time.sleep(600)", limit_s=1)
    assert is_late
    assert seconds < 60


def test_silence_is_given_up_before_time_is_up(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "for _ in range(8): os.write(int(sys.argv[2]), b'x'); time.sleep(0.1)\n"
        "time.sleep(600)"
    )
    printed, is_late, seconds = watched(tmp_path, code, silence_s=0.6)
    assert (printed, is_late) == (b"x" * 8, True)
    assert seconds < 30


def test_no_emulator_is_left_after_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    started: list[subprocess.Popen[bytes]] = []

    def interrupted() -> None:
        with (tmp_path / "errors").open("wb") as errors, emulator(command, errors, ()) as process:
            started.append(process)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert started[0].returncode == -9
