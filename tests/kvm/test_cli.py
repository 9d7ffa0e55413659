"""The commands as a user calls them, on this kernel."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.zygote import vmm
from vmm.scenario.codec import scenario_text
from vmm.scenario.operations import Mapping, Place, Scenario, SetUserMemoryRegion, Touch

VMM = (sys.executable, "-m", "vmm.cli")
ROOT = Path(__file__).parents[2]
TIME_LIMIT_S = 60

SLOW = Scenario(
    "slow",
    tuple(
        operation
        for page in range(16, 4016)
        for operation in (
            SetUserMemoryRegion(1, page << 12, 0x1000, Place("a")),
            Touch(page << 12),
            SetUserMemoryRegion(1),
        )
    ),
    (Mapping("a", 1),),
    survey="none",
)
"""Takes long enough to be interrupted."""


def test_info_says_that_this_host_can() -> None:
    result = vmm("info")
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("This host can run memslot scenarios.\n")
    assert "  KVM_CAP_USER_MEMORY " in result.stdout


def test_check_passes_on_this_kernel_and_says_so_in_json() -> None:
    result = vmm("check", "move-*", "--json", "-", "--require-run")
    data = json.loads(result.stdout)
    assert result.returncode == 0, result.stderr
    assert data["status"] == "passed"
    assert data["kernel_healthy"] is True
    assert {name: count for name, count in data["counts"].items() if count} == {
        "passed": len(vmm("check", "move-*", "--list").stdout.splitlines())
    }
    assert data["host"]["capabilities"]["USER_MEMORY"] == 1


def test_a_run_is_recorded_and_can_be_judged_again(tmp_path: Path) -> None:
    scenario, history = tmp_path / "s.json", tmp_path / "h.jsonl"
    name = vmm("check", "--list").stdout.split()[0]
    scenario.write_text(vmm("show", name).stdout)
    ran = vmm("run", scenario, "--history", history)
    assert ran.returncode == 0, ran.stderr
    judged = vmm("judge", history)
    assert judged.returncode == 0
    assert judged.stdout.startswith(f"PASSED       {name}: ")
    assert ran.stdout.startswith(judged.stdout)


def test_a_guest_out_of_the_way_leaves_a_bios_slot_its_place(tmp_path: Path) -> None:
    scenario, history = tmp_path / "bios.json", tmp_path / "bios.jsonl"
    bios = {
        "op": "set_user_memory_region",
        "slot": 1,
        "guest_phys_addr": "0xfffc0000",
        "memory_size": "0x40000",
        "userspace_addr": {"mapping": "a"},
    }
    made = {"name": "bios", "mappings": [{"name": "a", "pages": 64}], "operations": [bios]}
    scenario.write_text(json.dumps(made))
    assert vmm("run", scenario, "--history", history).returncode == 0
    assert '"is":"refused"' not in history.read_text()
    assert vmm("judge", history).stdout.startswith("PASSED")
    scenario.write_text(json.dumps({**made, "guest": {"gpa": "0xffff0000"}}))
    history.unlink()
    assert vmm("run", scenario, "--history", history).returncode == 0
    assert '"is":"refused","errno":17' in history.read_text()


def test_wrong_expectation_and_refused_calls_are_said_after_run_and_judge(tmp_path: Path) -> None:
    scenario, history = tmp_path / "s.json", tmp_path / "s.jsonl"
    create = SetUserMemoryRegion(1, 0x10000, 0x1000, Place("a"), expect="success")
    overlaps = SetUserMemoryRegion(2, 0x10000, 0x1000, Place("a"), expect="EINVAL")
    scenario.write_text(scenario_text(Scenario("s", (create, overlaps), (Mapping("a", 1),))))
    ran = vmm("run", scenario, "--history", history)
    for result in (ran, vmm("judge", history)):
        assert result.returncode == 3
        assert "not what the scenario expects: operation 1" in " ".join(result.stdout.split())
        assert "gave EEXIST, and its `expect` says EINVAL" in " ".join(result.stdout.split())
        assert "1 region call, as the rules say: 1 x EEXIST by overlap" in result.stdout
    checked = vmm("check", "refuse-*", "-v")
    assert checked.returncode == 0
    assert any(line.startswith("refused: ") for line in checked.stdout.splitlines())


def test_an_interrupted_run_leaves_the_history_of_what_ran(tmp_path: Path) -> None:
    scenario, history = tmp_path / "s.json", tmp_path / "h.jsonl"
    scenario.write_text(scenario_text(SLOW))
    with subprocess.Popen(
        [*VMM, "run", scenario, "--history", history],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        while process.poll() is None and not _is_under_way(history):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=TIME_LIMIT_S)
    assert (process.returncode, errors) == (3, "")
    assert output.startswith("INCONCLUSIVE slow: interrupted\n")
    assert f" to {len(SLOW.operations) - 1}\n" in output
    judged = vmm("judge", history)
    assert judged.returncode == 3
    assert output.startswith(judged.stdout.partition("again")[0])


def _is_under_way(history: Path) -> bool:
    return history.exists() and history.stat().st_size > len(scenario_text(SLOW)) + 20_000


def test_the_demo_shows_every_chapter_and_passes() -> None:
    result = vmm("demo")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    assert result.stdout.count("\n━━ ") == 8
    assert "\x1b" not in result.stdout
    assert result.stdout.endswith("`vmm check` tries much more.\n")


def test_a_reader_that_goes_away_is_no_verdict() -> None:
    with subprocess.Popen(
        [*VMM, "check", "--list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"vmm: nobody reads the output any more\n"
    assert process.returncode == 3
