"""The table of the kinds of "no", each for real: a row by a command that meets it.

``check``, ``run``, ``judge`` and ``fuzz`` have one exit status for each kind, and never another's.
Wrong kernels are in `test_caught.py` and `test_set_up.py`, interference with workers of ``fuzz`` in
`test_fuzz.py`, signals and our own files in `tests/kvm/test_endings.py`.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import zygote
from tests.lab import lab
from vmm.scenario.codec import scenario_text
from vmm.scenario.operations import Scenario, Touch

VMM = (sys.executable, "-m", "vmm.cli")
ROOT = Path(__file__).parents[2]
TIME_LIMIT_S = 120.0
SCENARIO = "create-one-page"
MANY = "move-up"
FUZZ = ("fuzz", "--seconds", "0.5", "--jobs", "1", "--seed", "1")
MANY_RUNS = "KVM_RUN:{}:after=30"
"""Strikes after more KVM_RUNs than probing takes."""


IMPATIENT = (
    "from vmm.execution import runner; import runpy, sys; sys.argv[0] = 'vmm'; "
    "runner.TIME_LIMIT_S = 1.0; runner.JOURNAL_OPERATION_LIMIT_S = 0.01; "
    "runpy.run_module('vmm.cli', run_name='__main__')"
)
"""`vmm` with time limits of a second."""


def vmm(
    *args: object,
    call: str = "",
    cwd: Path = ROOT,
    before: Callable[[], None] | None = None,
    program: tuple[str, ...] = VMM,
) -> "subprocess.CompletedProcess[str]":
    env = {**lab.environment(call=call), "PYTHONPATH": str(ROOT)}
    if before is None and program is VMM:
        result = zygote.vmm(*args, env=env, cwd=cwd)
    else:
        result = subprocess.run(
            [*program, *map(str, args)],
            env=env,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
            preexec_fn=before,
        )
    assert "Traceback" not in result.stdout + result.stderr
    return result


def limited(kind: int, limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (limit, limit))


@pytest.fixture
def many_runs(tmp_path: Path) -> Path:
    """A scenario in which vCPUs run so often that `MANY_RUNS` strikes."""
    operations = (op for _ in range(30) for op in (Touch(0x10000), Touch(1 << 32)))
    file = tmp_path / "many.json"
    file.write_text(scenario_text(Scenario("many", tuple(operations), survey="none")))
    return file


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The history of a correct kernel."""
    file = tmp_path_factory.mktemp("right") / "history.jsonl"
    assert vmm("run", SCENARIO, "--history", file).returncode == 0
    return file


def test_a_kernel_that_hangs_is_inconclusive(many_runs: Path, tmp_path: Path) -> None:
    hangs, history = MANY_RUNS.format("hang=1"), tmp_path / "h.jsonl"
    impatient = (sys.executable, "-c", IMPATIENT)
    ran = vmm("run", many_runs, "--history", history, call=hangs, program=impatient)
    checked = vmm("check", MANY, call=hangs, program=impatient)
    judged = vmm("judge", history)
    for result, name in ((ran, "many"), (judged, "many"), (checked, MANY)):
        assert result.returncode == 3, result.stdout + result.stderr
        assert f"INCONCLUSIVE {name}: hung: no end within " in result.stdout
        assert "  under way " in result.stdout


def test_a_process_that_the_kernel_kills_is_inconclusive(many_runs: Path, tmp_path: Path) -> None:
    kills, history = MANY_RUNS.format("kill=11"), tmp_path / "h.jsonl"
    ran = vmm("run", many_runs, "--history", history, call=kills)
    checked = vmm("check", MANY, SCENARIO, call=kills)
    judged = vmm("judge", history)
    for result, name in ((ran, "many"), (judged, "many"), (checked, MANY)):
        assert result.returncode == 3, result.stdout + result.stderr
        assert f"INCONCLUSIVE {name}: died: SIGSEGV\n" in result.stdout
        assert "  under way " in result.stdout
    assert "1 passed, 1 inconclusive" in checked.stdout


@pytest.mark.long
def test_a_process_of_a_search_that_the_kernel_kills_is_inconclusive(tmp_path: Path) -> None:
    kills = MANY_RUNS.format("kill=11")
    fuzzed = vmm(*FUZZ, "--out", tmp_path / "found", call=kills)
    assert fuzzed.returncode == 3, fuzzed.stdout + fuzzed.stderr
    assert " died: SIGSEGV" in fuzzed.stdout
    assert (tmp_path / "found").exists()


@pytest.mark.parametrize("command", [("check",), ("run", SCENARIO), FUZZ], ids=lambda args: args[0])
def test_a_host_that_lacks_it_by_its_own_word_runs_nothing(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    result = vmm(*command, call="KVM_CHECK_EXTENSION:answer=0", cwd=tmp_path)
    assert result.returncode == 4, result.stdout + result.stderr
    assert "nothing could run: KVM_CAP_USER_MEMORY is 0; this KVM has no memslots" in result.stderr
    required = vmm(*command, "--require-run", call="KVM_CHECK_EXTENSION:answer=0", cwd=tmp_path)
    assert required.returncode == 5


def test_a_host_without_proc_is_used_but_for_what_has_to_look_there(tmp_path: Path) -> None:
    hidden = ("unshare", "-m", "sh", "-c", f'mount --bind {tmp_path} /proc && exec "$@"', "sh")
    if subprocess.run([*hidden, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    patterns = (SCENARIO, "other-vms-killed", "follow-pages-that-a-child-shares")
    result = vmm("check", *patterns, program=(*hidden, *VMM))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "note: no /proc: what a VM leaves in its process is missed" in result.stdout
    assert "1 passed, 2 skipped" in result.stdout
    assert "needs /proc/self/maps and /proc/self/fd (a mounted /proc)" in result.stdout


@pytest.mark.parametrize("command", [("check",), ("run", SCENARIO), FUZZ], ids=lambda args: args[0])
def test_another_device_of_that_name_is_no_kernel_that_is_wrong(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    bound = ("unshare", "-m", "sh", "-c", 'mount --bind /dev/null /dev/kvm && exec "$@"', "sh")
    if subprocess.run([*bound, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    result = vmm(*command, program=(*bound, *VMM), cwd=tmp_path)
    assert result.returncode == 4, result.stdout + result.stderr
    assert "nothing could run: /dev/kvm: not character device 10:232; in a con" in result.stderr


@pytest.mark.parametrize("command", [("check",), ("run", SCENARIO), FUZZ], ids=lambda args: args[0])
def test_a_host_without_descriptors_is_inconclusive(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    result = vmm(*command, before=limited(resource.RLIMIT_NOFILE, 9), cwd=tmp_path)
    assert result.returncode == 3, result.stdout + result.stderr
    assert "INCONCLUSIVE probing: the host: KVM_CREATE_VCPU(0): EMFILE; under way: " in (
        result.stdout + result.stderr
    )


def test_judging_takes_few_descriptors(history: Path) -> None:
    assert vmm("judge", history, before=limited(resource.RLIMIT_NOFILE, 9)).returncode == 0


@pytest.mark.parametrize("command", ["check", "run", "judge"])
def test_a_file_that_may_not_grow_is_the_hosts(tmp_path: Path, history: Path, command: str) -> None:
    what = history if command == "judge" else SCENARIO
    file = tmp_path / "result.json"
    file.write_text("old")
    may_not_grow = limited(resource.RLIMIT_FSIZE, 100)
    result = vmm(command, what, "--json", file, before=may_not_grow)
    assert result.returncode == 3
    assert result.stderr.splitlines()[-1] == f"vmm: the host: {file}: File too large (ulimit -f)"
    assert [path for path in tmp_path.iterdir() if path != file] == []
    result = vmm(command, what, before=may_not_grow)
    assert result.returncode == 0


@pytest.mark.parametrize(
    "command", [("run", SCENARIO), ("judge",), FUZZ, ("info",)], ids=lambda args: args[0]
)
@pytest.mark.parametrize("is_closed", [False, True], ids=["full", "closed"])
def test_output_that_nobody_takes_is_inconclusive(
    tmp_path: Path, history: Path, command: tuple[str, ...], is_closed: bool
) -> None:
    args = [*VMM, *command, *([str(history)] if command == ("judge",) else [])]
    reading, to = os.pipe()
    os.close(reading)
    if not is_closed:
        os.close(to)
        to = os.open("/dev/full", os.O_WRONLY)
    try:
        result = subprocess.run(
            args,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            stdout=to,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
    finally:
        os.close(to)
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("note: "))
    assert result.returncode == 3
    assert line.startswith("vmm: ")
    assert line.endswith("any more" if is_closed else "No space left on device")
    assert is_closed or line.startswith("vmm: the host: ")
