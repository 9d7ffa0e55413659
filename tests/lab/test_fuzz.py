"""The whole chain: a wrong kernel is found, minimised, reported, and shown by its C program."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.fuzz_table import HARD, NEW, tell
from tests.lab.lab import environment, faults
from tests.zygote import vmm
from vmm.cli.main import COMMANDS
from vmm.fuzz.journal import left_behind, read_journal
from vmm.scenario.codec import read_scenario, scenario_text
from vmm.scenario.operations import Scenario

FUZZ = (sys.executable, "-m", "vmm.cli", "fuzz")
PAUSE_S = 0.01
BUDGET = ("--jobs", "1", "--seconds", "30", "--findings", "1")


def fuzz(folder: Path, *arguments: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    env = environment(fault) if fault else os.environ
    return vmm("fuzz", "--out", folder / "out", *arguments, env=env, timeout=110)


@pytest.mark.parametrize("name", ["move-leaves-alias", "dirty-lost-after-flags-only"])
def test_a_wrong_kernel_is_found_minimised_and_told(name: str, tmp_path: Path) -> None:
    ran = fuzz(tmp_path, "--seed", "5", *BUDGET, fault=name)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    (finding,) = (tmp_path / "out").iterdir()
    assert {path.name for path in finding.iterdir()} == {
        "scenario.json",
        "repro.c",
        "history.jsonl",
        "host.json",
        "report.md",
        "report.txt",
    }
    fault = next(each for each in faults() if each.name == name)
    assert len(read_scenario(finding / "scenario.json").operations) <= fault.fewest + 2
    assert tell(finding / "repro.c", name, tmp_path) == (1, 0)
    report = (finding / "report.md").read_text()
    assert "## Expected" in report
    assert "It showed in 10 of 10 runs." in report
    counted = re.search(r"^([\d,]+) scenarios?, ", ran.stdout, re.M)
    assert counted
    assert int(counted[1].replace(",", "")) > 0, "the one that differed is counted, too"
    assert json.loads((finding / "host.json").read_text())["kernel"]


@pytest.mark.long
@pytest.mark.parametrize("seed", ["5", "6", "8"])
def test_what_depends_on_earlier_vms_is_joined_and_minimised_in_processes_of_their_own(
    seed: str, tmp_path: Path
) -> None:
    """Every third move in a process goes wrong, so that a try depends on the previous ones."""
    fault = "move-leaves-alias:every=3:joint=1"
    ran = fuzz(tmp_path, "--seed", seed, *BUDGET, fault=fault)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    (finding,) = (tmp_path / "out").iterdir()
    operations = read_scenario(finding / "scenario.json").operations
    assert len(operations) <= 5 + 2, "a slot, three moves, and a touch"
    assert tell(finding / "repro.c", fault, tmp_path) == (1, 0)
    assert "It showed in 10 of 10 runs." in (finding / "report.md").read_text()


def test_the_table_names_faults_that_exist() -> None:
    known = {fault.name for fault in faults()}
    assert set(HARD) | set(NEW) <= known
    assert len(NEW) == len(set(NEW)) == 54


def test_a_right_kernel_passes_and_leaves_nothing(tmp_path: Path) -> None:
    ran = fuzz(tmp_path, "--seed", "1", "--jobs", "2", "--operations", "3000", "--seconds", "60")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "no difference found" in ran.stdout
    assert not (tmp_path / "out").exists()


def test_a_corpus_grows_and_is_begun_from(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    budget = ("--jobs", "1", "--operations", "500", "--seconds", "60", "--corpus", str(corpus))
    assert fuzz(tmp_path, "--seed", "2", *budget).returncode == 0
    kept = {path.name for path in corpus.iterdir()}
    assert kept
    (corpus / "torn.json").write_text("{")
    again = fuzz(tmp_path, "--seed", "2", *budget)
    assert again.returncode == 0
    assert "torn.json" in again.stderr
    assert {path.name for path in corpus.iterdir()} >= kept


def _crash(out: Path) -> None:
    """Leave the journals of a run of two workers, as if the machine crashed."""
    command = [*FUZZ, "--seed", "4", "--shard", "2/3", "--jobs", "2", "--out", str(out)]
    running = subprocess.Popen(command, start_new_session=True)
    try:
        while sum(path.stat().st_size > 0 for path in out.glob("under-way-*")) < 2:
            assert running.poll() is None
            time.sleep(PAUSE_S)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    while len(left_behind(out)) < 2:  # The journal of a worker is locked until it is dead.
        time.sleep(PAUSE_S)


def test_what_was_under_way_is_named_after_a_crash(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _crash(out)
    # A worker may die between two groups, or while it writes the next: then nothing is under way.
    while not all(left and left.under_way for left in map(read_journal, left_behind(out))):
        shutil.rmtree(out)
        _crash(out)
    budget = ("--jobs", "1", "--operations", "100", "--seconds", "60")
    later = fuzz(tmp_path, "--seed", "1", *budget)
    assert later.stdout.count("left by a run that broke off") == 2
    resumed = fuzz(tmp_path, "--resume", *budget)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "seed 4, 1 jobs, shard 2/3" in resumed.stdout
    kept = list(out.glob("fuzz-*.json"))
    assert len(kept) == resumed.stdout.count("under way: fuzz-") >= 2
    minimised = fuzz(tmp_path, "--minimise", str(kept[0]))
    assert ": there is nothing to minimise" in minimised.stdout
    assert fuzz(tmp_path, "--resume", *budget).returncode == 2


def test_findings_of_several_runs_are_gathered_once(tmp_path: Path) -> None:
    for run, names in (("a", ("x", "y")), ("b", ("y", "z"))):
        for name in names:
            folder = tmp_path / run / name
            folder.mkdir(parents=True)
            (folder / "scenario.json").write_text(scenario_text(Scenario(name, ())))
    merged = fuzz(tmp_path, "--merge", str(tmp_path / "a"), str(tmp_path / "b"))
    assert merged.returncode == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x", "y", "z"]


def test_a_full_disk_ends_the_run_with_what_it_has(tmp_path: Path) -> None:
    ran = subprocess.run(
        ["prlimit", "--fsize=4096", *FUZZ, "--seconds", "30", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 3, ran.stdout + ran.stderr
    assert "note: ended early: " in ran.stdout
    assert "File too large" in ran.stdout


def test_a_folder_that_cannot_be_written_is_a_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    ran = fuzz(tmp_path, "--seconds", "30", "--out", str(tmp_path / "out" / "below"))
    assert ran.returncode == 2
    assert ran.stderr == f"vmm: {tmp_path}/out/below: Not a directory\n"


def test_ctrl_c_ends_with_a_summary(tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = subprocess.Popen(
        [*FUZZ, "--jobs", "1", "--out", str(out)], stdout=subprocess.PIPE, text=True
    )
    while not any(path.stat().st_size for path in out.glob("under-way-*")):
        assert running.poll() is None
        time.sleep(PAUSE_S)
    running.send_signal(signal.SIGINT)
    stdout, _ = running.communicate(timeout=30)
    assert "note: interrupted" in stdout
    assert running.returncode in (0, 3)
    assert not out.exists()


def test_the_commands_are_known() -> None:
    assert {"fuzz", "repro", "compare"} <= set(COMMANDS)


def test_a_journal_of_a_stranger_leads_nowhere(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    operations = [{"op": "inspect"}]
    scenarios = [{"name": "../../escaped", "operations": operations}]
    intent = {"seed": 1, "shard": [1, 1], "first": 0, "step": 1, "scenarios": scenarios}
    (out / "under-way-x-0.journal").write_text(json.dumps(intent) + "\n")
    zero = {**intent, "shard": [1, 0]}
    (out / "under-way-y-0.journal").write_text(json.dumps(zero) + "\n")
    ran = fuzz(tmp_path, "--resume", "--jobs", "1", "--operations", "100", "--seconds", "60")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "under-way-y-0.journal: not a journal" in ran.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert len(list(out.glob("*.json"))) == 1


def test_descriptors_that_run_out_are_the_hosts(tmp_path: Path) -> None:
    ran = subprocess.run(
        ["prlimit", "--nofile=17", *FUZZ, "--seed", "1", *BUDGET, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 3, ran.stdout + ran.stderr
    assert "note: ended early: the host: " in ran.stdout
    assert "EMFILE" in ran.stdout


def test_a_worker_that_is_killed_from_outside_is_no_finding(tmp_path: Path) -> None:
    command = [*FUZZ, "--seed", "1", "--jobs", "1", "--seconds", "2"]
    command += ["--out", str(tmp_path / "out")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while not any((tmp_path / "out").glob("under-way-*")):
        assert running.poll() is None
        time.sleep(PAUSE_S)
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    stdout, _ = running.communicate(timeout=60)
    assert running.returncode == 3, stdout
    assert "note: the host: a worker was killed or stopped from outside" in stdout
    assert "no difference found" in stdout
