"""Whatever ends a run, it ends soon, says why, and leaves no process and no half-written file."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.ideal import FEATURES
from vmm.execution import runner
from vmm.execution.runner import run_isolated
from vmm.host.signals import ENDING_SIGNALS
from vmm.scenario.codec import scenario_text
from vmm.scenario.content import STUB_OFFSET
from vmm.scenario.operations import (
    AnyOperation,
    Execute,
    GuestThread,
    HostWrite,
    Mapping,
    Place,
    Race,
    Scenario,
    SetUserMemoryRegion,
)
from vmm.verdict.judge import Status, judge

ROOT = Path(__file__).parents[2]
VMM = (sys.executable, "-m", "vmm.cli")
TIME_LIMIT_S = 60.0
JUMP_TO_ITSELF = 0xFEEB


def endless(last: AnyOperation) -> Scenario:
    return Scenario(
        "endless",
        (
            SetUserMemoryRegion(1, 0x100000, 0x1000, Place("a")),
            HostWrite(Place("a", STUB_OFFSET), JUMP_TO_ITSELF),
            last,
        ),
        (Mapping("a", 1),),
        survey="none",
    )


@pytest.mark.parametrize(
    "last", [Execute(0x100000), Race((), (GuestThread((Execute(0x100000),), 2),))]
)
def test_a_guest_that_never_ends_is_ended(
    last: AnyOperation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GUEST_LIMIT_S", 0.3)
    history = run_isolated(endless(last), FEATURES)
    verdict = judge(history)
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason == "endless: the guest has no exit within 0.3 s"
    assert verdict.under_way is not None
    assert verdict.under_way.origin == 2


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    file = tmp_path / "endless.json"
    file.write_text(scenario_text(endless(Execute(0x100000))))
    return file


@pytest.fixture
def started() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a command; what is left of it is killed at the end of the test."""
    every: list[subprocess.Popen[str]] = []

    def start(*args: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*VMM, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        every.append(process)
        return process

    yield start
    for process in every:
        process.kill()
        process.communicate()


def cpu_time_s(process: psutil.Process) -> float:
    """Return how long a process has run; 0 for one that is gone, as those that ask the host are."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def with_a_child(process: "subprocess.Popen[str]", ran_s: float = 0.3) -> list[psutil.Process]:
    """Wait until a process has children that run a guest, and return them."""
    deadline = time.monotonic() + TIME_LIMIT_S
    while time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
        if any(cpu_time_s(child) > ran_s for child in children):
            return children
        time.sleep(0.05)
    raise AssertionError("no child runs")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left(
    scenario: Path, started: Callable[..., "subprocess.Popen[str]"], number: signal.Signals
) -> None:
    process = started("run", scenario, "--patience", "100")
    children = with_a_child(process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=TIME_LIMIT_S)
    gone, alive = psutil.wait_procs(children, timeout=TIME_LIMIT_S)
    assert (len(gone), alive) == (len(children), [])
    if number == signal.SIGKILL:
        return
    assert (process.returncode, errors) == (3, "")
    assert "INCONCLUSIVE endless: interrupted\n" in output


def test_cpu_time_that_is_used_up_is_named_and_leaves_a_whole_result(
    tmp_path: Path, scenario: Path, started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    file = tmp_path / "result.json"
    process = started("run", scenario, "--patience", "100", "--json", file)
    with_a_child(process)
    process.send_signal(signal.SIGXCPU)
    errors = process.communicate(timeout=TIME_LIMIT_S)[1]
    data = json.loads(file.read_text())
    assert (process.returncode, data["exit_status"]) == (3, 3)
    assert errors == "vmm: the host: no more CPU time is allowed (ulimit -t)\n"


@pytest.mark.parametrize("command", [("run", "x", "--json", "r.json"), ("judge", "h.jsonl")])
def test_a_current_folder_that_is_gone_is_the_hosts(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD"; exec "$@"'
    result = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-P", "-m", "vmm.cli", *command],
        cwd=gone,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
    )
    assert result.returncode in {2, 3}
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_leaves_a_whole_result(
    tmp_path: Path, started: Callable[..., "subprocess.Popen[str]"], number: signal.Signals
) -> None:
    file = tmp_path / "result.json"
    file.write_text("an old one")
    process = started("check", "--all", "--json", file)
    with_a_child(process, ran_s=0.1)
    assert not file.exists()
    process.send_signal(number)
    process.communicate(timeout=TIME_LIMIT_S)
    data = json.loads(file.read_text())
    assert (process.returncode, data["exit_status"], data["early"]) == (3, 3, "interrupted")
    assert data["not_run"]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("loaded", ["vmm.scenario.endings", "vmm.verdict.statuses"])
def test_a_signal_that_comes_first_ends_it_in_one_line(loaded: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *VMM[1:], "check"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if loaded in line:
            break
    process.send_signal(signal.SIGINT)
    rest = [line for line in process.stderr if not line.startswith("import time:")]
    assert rest == ["vmm: interrupted\n"]
    assert process.wait() == 3


@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_a_signal_that_has_waited_for_python_is_told_in_the_result(
    tmp_path: Path, number: signal.Signals
) -> None:
    file = tmp_path / "result.json"
    file.write_text("an old one")
    process = subprocess.Popen(
        [*VMM, "check", "--json", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS),
    )
    process.send_signal(number)
    assert process.communicate(timeout=TIME_LIMIT_S) == ("", "vmm: interrupted\n")
    assert (process.returncode, json.loads(file.read_text())["early"]) == (3, "interrupted")


@pytest.mark.parametrize(
    "command", [("check", "create-*"), ("check", "--list"), ("show", "move-up")]
)
def test_a_full_disk_that_takes_the_output_is_the_hosts(command: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*VMM, *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            timeout=TIME_LIMIT_S,
            check=False,
        )
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("vmm: ")
    assert result.stderr.endswith("No space left on device\n")


def test_standard_error_that_takes_nothing_is_the_hosts() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*VMM, "check", "no-such-scenario"],
            stdout=full,
            stderr=full,
            cwd=ROOT,
            timeout=TIME_LIMIT_S,
            check=False,
        )
    assert result.returncode == 3


def limited(kind: int, limit: int, *args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*VMM, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=TIME_LIMIT_S,
        check=False,
        preexec_fn=lambda: resource.setrlimit(kind, (limit, limit)),
    )


@pytest.mark.parametrize("option", ["--histories", "--journal"])
def test_a_disk_that_is_full_of_histories_is_named(tmp_path: Path, option: str) -> None:
    target = tmp_path / "kept"
    result = limited(resource.RLIMIT_FSIZE, 600, "check", "create-one-page", option, target)
    assert result.returncode == 3
    file = target if option == "--histories" else target / "under-way.jsonl"
    assert f"{file}: File too large (ulimit -f)" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert "died" not in result.stdout


def test_a_small_disk_under_a_history_is_named(tmp_path: Path, scenario: Path) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(mounted)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        show = subprocess.run([*VMM, "show", "move-up"], capture_output=True, cwd=ROOT, check=True)
        scenario.write_bytes(show.stdout)
        result = limited(
            resource.RLIMIT_CORE, 0, "run", scenario, "--history", mounted / "history.jsonl"
        )
        assert result.returncode == 3
        assert f"the host: {mounted}/history.jsonl: No space left on device" in result.stdout
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_child_that_is_killed_costs_its_scenario_alone(
    tmp_path: Path, scenario: Path, started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = started("run", scenario, "--patience", "100")
    for child in with_a_child(process):
        os.kill(child.pid, signal.SIGKILL)
    output, errors = process.communicate(timeout=TIME_LIMIT_S)
    assert (process.returncode, errors) == (3, "")
    assert "INCONCLUSIVE endless: died: SIGKILL\n  perhaps   for want of memory (" in output


IMPATIENT = (
    "from vmm.execution import runner; import runpy, sys; sys.argv[0] = 'vmm'; "
    "runner.TIME_LIMIT_S = 3.5; runner.OPERATION_LIMIT_S = 0; runner.GUEST_LIMIT_S = 2.0; "
    "runpy.run_module('vmm.cli', run_name='__main__')"
)
"""`vmm` that waits for a guest for two seconds, and a little longer for the kernel."""


@pytest.mark.parametrize(
    ("everyone", "said"),
    [(True, "endless: the guest has no exit within 2 s"), (False, "the host: its process was sto")],
)
def test_a_process_that_was_stopped_is_no_kernel_that_hung(
    scenario: Path, everyone: bool, said: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, "run", str(scenario)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        children = with_a_child(process)
        if everyone:  # As Ctrl-Z does, and `fg` some time later.
            os.killpg(process.pid, signal.SIGSTOP)
            time.sleep(4)
            os.killpg(process.pid, signal.SIGCONT)
        else:
            os.kill(children[-1].pid, signal.SIGSTOP)
        output, _ = process.communicate(timeout=TIME_LIMIT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 3
    assert f"INCONCLUSIVE endless: {said}" in output


@pytest.mark.long
def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    impatient = (
        "from vmm.fuzz import driver; import runpy, sys; sys.argv[0] = 'vmm'; "
        "driver._SILENCE_S = 5.0; runpy.run_module('vmm.cli', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", impatient, "fuzz", "--seconds", "10", "--jobs", "1", "--seed", "1"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        with_a_child(process)
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(6)
        os.killpg(process.pid, signal.SIGCONT)
        output, _ = process.communicate(timeout=TIME_LIMIT_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, "hung" in output) == (0, False), output
