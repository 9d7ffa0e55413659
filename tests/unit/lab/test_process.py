import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmm.lab.log import LogReader, Reports
from vmm.lab.process import Late, Pipes, TimeLimits, emulator, watch

NONCE = "01234567"


def watched(
    tmp_path: Path, code: str, limit_s: float = 60, silence_s: float = 60, life_s: float = 60
) -> tuple[bytes, Late, float]:
    """Run a program in the place of an emulator; it has the log's path and two pipes."""
    printed: list[bytes] = []
    told: list[Reports] = []
    pipes = Pipes(printed.append, printed.append)
    log, start = tmp_path / "log", time.monotonic()
    command = [sys.executable, "-c", code, str(log), *map(str, pipes.writers)]
    with (tmp_path / "errors").open("wb") as errors, emulator(command, errors, pipes.writers) as it:
        pipes.close_writers()
        limits = TimeLimits(limit_s, silence_s, life_s)
        watching = watch(it, pipes, LogReader(log, NONCE), limits, told.append)
        while True:
            try:
                next(watching)
            except StopIteration as end:
                reports, late = end.value
                break
    pipes.close()
    assert it.returncode is not None
    assert all(each is reports for each in told)
    return b"".join(printed), late, time.monotonic() - start


def test_all_that_is_printed_comes_through(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.write(int(sys.argv[2]), b'x' * 200000); "
        "os.write(int(sys.argv[3]), b'y')"
    )
    printed, late, _ = watched(tmp_path, code)
    assert (printed.count(b"x"), printed.count(b"y"), late) == (200000, 1, Late.NOT)


def test_time_is_up(tmp_path: Path) -> None:
    _, late, seconds = watched(tmp_path, "import time; time.sleep(600)", limit_s=1)
    assert late is Late.TIME
    assert seconds < 60


def test_silence_is_given_up_before_time_is_up(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "for _ in range(8): os.write(int(sys.argv[2]), b'x'); time.sleep(0.1)\n"
        "time.sleep(600)"
    )
    printed, late, seconds = watched(tmp_path, code, silence_s=0.6)
    assert (printed, late) == (b"x" * 8, Late.TIME)
    assert seconds < 30


READY = f"""
import sys, time
with open(sys.argv[1], "a", buffering=1) as log:
    log.write("[1.0] memslot-lab {NONCE} ready\\n")
"""


def test_a_machine_that_gives_no_sign_of_life_is_not_waited_for(tmp_path: Path) -> None:
    code = READY + "time.sleep(600)"
    _, late, seconds = watched(tmp_path, code, life_s=0.5)
    assert late is Late.DEAD
    assert seconds < 30


def test_signs_of_life_are_lines_of_the_log_and_what_is_printed(tmp_path: Path) -> None:
    life = """
import os
for number in range(20):
    time.sleep(0.1)
    if number % 2:
        open(sys.argv[1], "a").write("[1.0] hello\\n")
    else:
        os.write(int(sys.argv[2]), b"x")
"""
    printed, late, _ = watched(tmp_path, READY + life, life_s=1)
    assert late is Late.NOT
    assert printed == b"x" * 10


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
