"""A program whose own modules cannot be read says so in one line, with a documented status."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.played import played, vmm
from vmm.cli.main import main
from vmm.cli.start import run
from vmm.host.signals import ENDING_SIGNALS


class Broken:
    """Finds no module of the command line's."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Fail where the command line is looked for."""
        if name == "vmm.cli.main":
            raise self.error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OSError(24, "Too many open files"), 3, "vmm: the host: Too many open files (ulimit -n)\n"),
        (ImportError("x.so: undefined symbol: y"), 70, "vmm: internal error: x.so: undefined "),
        (ModuleNotFoundError("No module named 'y'", name="y"), 70, "vmm: internal error: No mod"),
        (
            ModuleNotFoundError("No module named 'click'", name="click"),
            3,
            "vmm: the host: a module ",
        ),
        (ImportError("x.so: failed to map segment from shared object"), 3, "vmm: the host: a mod"),
        (ImportError("x.so: cannot open: Too many open files"), 3, "vmm: the host: a module could"),
        (MemoryError(), 3, "vmm: the host: out of memory\n"),
    ],
)
def test_a_start_that_fails_is_no_verdict(
    error: Exception,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vmm.cli.start.ENDING_SIGNALS", ())
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)
    monkeypatch.delitem(sys.modules, "vmm.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(error), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == status
    assert capfd.readouterr().err.startswith(line)


@pytest.mark.parametrize("lost", ["vmm.cli.main", "vmm.cli.check"])
@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("check --json r.json", False),
        ("check --json=r.json", False),
        ("check --json scenario.json", True),
        ("run r.json", True),
        ("coverage --json r.json", True),
    ],
)
def test_no_older_result_stays_where_a_command_cannot_be_loaded(
    words: str, kept: bool, lost: str, tmp_path: Path
) -> None:
    result, scenario = tmp_path / "r.json", tmp_path / "scenario.json"
    result.write_text('{"format": 1, "exit_status": 0}')
    scenario.write_text('{"format": 1, "name": "mine"}')
    hidden = (
        "import sys; from vmm.cli.start import run; "
        f"lost = dict.fromkeys([{lost!r}, 'vmm.cli.run', 'vmm.cli.coverage']); "
        "sys.modules.update(lost); run()"
    )
    command = [sys.executable, "-c", hidden, *words.split()]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False)
    assert ended.returncode in {3, 70}
    assert (result.exists(), scenario.exists()) == (kept, True)


class Finalized:
    """Is interrupted in its finalizer, where Python drops what is raised."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            pass


class Named:
    """Is interrupted as a class gets it, where Python makes a RuntimeError of what is raised."""

    def __set_name__(self, owner: type, name: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            pass


def drop() -> None:
    Finalized()
    time.sleep(5)


def wrap() -> None:
    type("Owner", (), {"field": Named()})
    time.sleep(5)


@pytest.mark.parametrize("meet", [drop, wrap])
def test_an_interruption_ends_a_command_wherever_it_comes(
    meet: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.cli.man.page", lambda _: meet())
    begun = time.monotonic()
    result = CliRunner().invoke(main, ["man"])
    assert (result.exit_code, result.stderr) == (3, "vmm: interrupted\n")
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize(
    "command",
    [
        "check --list",
        "check --transcript pipe",
        "check --json pipe",
        "check --histories pipe",
        "check --white-box",
        "judge pipe",
        "fuzz --minimise pipe",
        "info",
        "run -",
        "run pipe",
    ],
)
def test_no_signal_waits_for_what_may_take_long(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waiting: None
) -> None:
    played(monkeypatch)
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    result = vmm(*command.split())
    assert (result.exit_code, result.output) == (3, "vmm: interrupted\n")


@pytest.mark.parametrize(
    ("limits", "within"),
    [((6, 6), (5, 6)), ((-1, 6), (5, 6)), ((3, 6), (3, 6)), ((1, 1), (1, 1)), ((-1, -1), (-1, -1))],
)
def test_cpu_time_is_left_for_the_result(
    limits: tuple[int, int], within: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit: list[tuple[int, int]] = [limits]
    during: list[tuple[int, int]] = []

    def page(_: object) -> str:
        during.append(limit[-1])
        return ""

    monkeypatch.setattr("resource.getrlimit", lambda _: limit[-1])
    monkeypatch.setattr("resource.setrlimit", lambda _, wanted: limit.append(wanted))
    monkeypatch.setattr("vmm.cli.man.page", page)
    assert CliRunner().invoke(main, ["man"]).exit_code == 0
    assert (during, limit[-1]) == ([within], limits)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_streams_that_were_closed_change_no_status(closed: tuple[int, ...]) -> None:
    def close() -> None:
        for fd in closed:
            os.close(fd)

    command = [sys.executable, "-P", "-m", "vmm.cli", "show", "move-up"]
    assert subprocess.run(command, preexec_fn=close, check=False).returncode == 0


def test_a_second_signal_is_not_left_to_others_while_the_first_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    handlers = []
    before = [signal.getsignal(number) for number in ENDING_SIGNALS]
    monkeypatch.setattr("vmm.cli.command.Command.invoke", interrupted)
    monkeypatch.setattr(
        "vmm.cli.main.say",
        lambda _: handlers.append([signal.getsignal(number) for number in ENDING_SIGNALS]),
    )
    assert CliRunner().invoke(main, ["info"], prog_name="vmm").exit_code == 3
    assert handlers == [before]


def test_a_signal_while_a_method_is_made_leaves_the_status(tmp_path: Path) -> None:
    (tmp_path / "making.py").write_text(
        "import os, signal, sys\n"
        "from vmm.cli.main import _as_interruptions\n"
        "try:\n"
        "    with _as_interruptions():\n"
        "        exec('os.kill(os.getpid(), signal.SIGTERM)')\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-m", "making"], cwd=tmp_path, check=False)
    assert done.returncode == 3
