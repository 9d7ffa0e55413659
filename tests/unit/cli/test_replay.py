"""``vmm replay``: what it prints of a trace, and its exit status."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.ideal import ideal_history
from tests.played import Kernel, played, vmm, with_outcome
from tests.traced import KVM, TRACES, region
from vmm.cli import replay
from vmm.cli.running.host import Host
from vmm.host.hostinfo import HostInfo
from vmm.replay import places
from vmm.replay.build import Replay
from vmm.replay.reader import read_trace
from vmm.scenario.codec import read_scenario
from vmm.scenario.features import Features
from vmm.scenario.history import Refused

Q35 = TRACES / "qemu-q35-seabios.strace"
NO_KVM = HostInfo("6.99", "x86_64", "A CPU", False, "", "", "no /dev/kvm", "get one")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = played(monkeypatch)
    monkeypatch.setattr(replay, "look_at_host", kernel.look_at_host)
    return kernel


@pytest.fixture
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "look_at_host", lambda: Host(NO_KVM, Features()))


def write(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "trace"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def altered(tmp_path: Path, number: int) -> Path:
    lines = Q35.read_text().splitlines()
    lines[number - 1] = re.sub(r"= 0$", "= -1 EINVAL (Invalid argument)", lines[number - 1])
    return write(tmp_path, *lines)


@pytest.mark.usefixtures("no_host")
def test_a_trace_is_judged_at_a_desk() -> None:
    result = vmm("replay", "--judge-only", str(Q35))
    assert result.exit_code == 0
    assert "made on line 4: 39 calls, 0 of them refused" in result.output
    assert "PASSED       as traced: 41 events judged by" in result.output
    assert (
        "5 x KVM_ENABLE_CAP, whose arguments the trace does not show in full (line 16)"
        in result.output
    )


def judged_from_stdin(text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmm.cli", "replay", "--judge-only", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_standard_input_is_called_so_and_named_by_a_dash_in_a_command(tmp_path: Path) -> None:
    done = judged_from_stdin(altered(tmp_path, 101).read_text())
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("standard input: ")
    assert "again     vmm replay --judge-only --vm 1 -\n" in done.stdout


@pytest.mark.parametrize(
    ("text", "why"), [("\n", "empty\n"), ("hello\n", "none of its 1 lines is of strace")]
)
def test_standard_input_that_is_no_trace(text: str, why: str) -> None:
    done = judged_from_stdin(text)
    assert done.returncode == 2
    assert done.stderr.startswith(f"vmm: standard input: {why}")
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("no_host")
def test_without_a_kernel_the_trace_is_judged_and_nothing_runs() -> None:
    result = vmm("replay", str(Q35))
    assert result.exit_code == 4
    assert "PASSED       as traced" in result.output
    assert "nothing could run: no /dev/kvm" in result.output


def test_a_difference_is_named_by_the_line_of_the_trace(tmp_path: Path) -> None:
    file = altered(tmp_path, 101)
    result = vmm("replay", "--judge-only", str(file))
    assert result.exit_code == 1
    assert "DIFFERS      as traced" in result.output
    assert f"trace     {file}:101: 9322  ioctl(8, KVM_SET_USER_MEMORY_REGION" in result.output
    assert "refused   line 101: KVM_SET_USER_MEMORY_REGION(slot=3" in result.output


@pytest.mark.usefixtures("no_host")
def test_a_bug_that_is_known_is_named_so(tmp_path: Path) -> None:
    slot = region(name="KVM_SET_USER_MEMORY_REGION2", flags="KVM_MEM_GUEST_MEMFD").replace(
        "}", ", guest_memfd_offset=0x7ffffffffffff000, guest_memfd=9}"
    )
    made = "7 ioctl(8, KVM_CREATE_GUEST_MEMFD, {size=16384, flags=0x0}) = 9"
    trace = write(tmp_path, KVM, made, slot, "7 close(30) = 0")
    result = vmm("replay", "--judge-only", str(trace))
    assert result.exit_code == 0
    assert "KNOWN        as traced: gmem-bind-signed-overflow" in result.output
    assert f"trace     {trace}:3: " in result.output


def test_the_calls_are_made_here_too(kernel: Kernel) -> None:
    result = vmm("replay", str(Q35))
    assert result.exit_code == 0
    assert kernel.ran == ["qemu-q35-seabios.strace-vm1"]
    assert "PASSED       VM 1, run here" in result.output


def test_a_difference_here_is_named_by_the_line_of_the_trace(kernel: Kernel) -> None:
    trace = read_trace(Q35)
    scenario = Replay(trace, trace.vms[0], kernel.features).built.scenario
    history = ideal_history(scenario, kernel.features)
    kernel.histories[scenario.name] = with_outcome(history, 4, Refused(errno.EEXIST))
    result = vmm("replay", str(Q35))
    assert result.exit_code == 1
    assert "DIFFERS      VM 1, run here" in result.output
    assert f"trace     {Q35}:73: " in result.output


def test_the_scenario_is_written_and_can_be_run(tmp_path: Path) -> None:
    file = tmp_path / "scenario.json"
    result = vmm("replay", "--judge-only", "--scenario", str(file), str(Q35))
    assert result.exit_code == 0
    scenario = read_scenario(file)
    assert len(scenario.operations) == 41
    assert sum(mapping.pages for mapping in scenario.mappings) == 37040


def test_several_vms_are_judged_in_turn_and_one_can_be_chosen(tmp_path: Path) -> None:
    lines = [KVM, region(0), "20 ioctl(3, KVM_CREATE_VM, 0) = 8"]
    file = write(tmp_path, *lines, region(0, head="20 "), region(1, 0x11000, head="20 "))
    both = vmm("replay", "--judge-only", str(file))
    assert both.exit_code == 1
    assert both.output.index("VM 1: made on line 1") < both.output.index("VM 2: made on line 3")
    assert vmm("replay", "--judge-only", "--vm", "1", str(file)).exit_code == 0
    assert vmm("replay", "--judge-only", "--vm", "2", str(file)).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--vm", "3"], "--vm 3: "),
        (["--scenario", "x.json"], "has 2 VMs: choose one with --vm"),
    ],
)
def test_a_choice_that_cannot_be(tmp_path: Path, arguments: list[str], says: str) -> None:
    lines = [KVM, region(0), "20 ioctl(3, KVM_CREATE_VM, 0) = 8", region(0, head="20 ")]
    result = vmm("replay", "--judge-only", *arguments, str(write(tmp_path, *lines)))
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.usefixtures("kernel")
def test_a_slot_that_is_too_large_to_run_is_judged_all_the_same(tmp_path: Path) -> None:
    file = write(tmp_path, KVM, region(0, 0, 1 << 42))
    assert vmm("replay", "--judge-only", str(file)).exit_code == 0
    result = vmm("replay", str(file))
    assert result.exit_code == 2
    assert f"vmm: {file}:2: memory_size: a slot has at most" in result.output
    assert "--judge-only runs nothing" in result.output


def test_what_a_trace_takes_is_bounded_and_the_bound_can_be_raised(tmp_path: Path) -> None:
    drop = "7 madvise(0x7f0000000000, 0x4000000, MADV_DONTNEED) = 0"
    file = write(tmp_path, KVM, region(0, 0, 1 << 26), drop, drop)
    command = ("replay", "--judge-only", str(file), "--scenario", str(tmp_path / "made.json"))
    result = vmm(*command)
    assert result.exit_code == 2
    assert "MiB of memory; --allow-large allows more" in result.output
    assert vmm(*command, "--allow-large").exit_code == 0


def test_a_file_that_is_no_trace(tmp_path: Path) -> None:
    file = write(tmp_path, "\x1b]0;evil\x07hello")
    result = vmm("replay", "--judge-only", str(file))
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "none of its 1 lines is of strace" in result.output
    assert vmm("replay", "--judge-only", str(tmp_path / "absent")).exit_code == 2


def test_what_the_trace_says_does_not_reach_the_terminal(tmp_path: Path) -> None:
    line = region(1, 0x11000) + " \x1b[31m\x07\x9b31m"
    result = vmm("replay", "--judge-only", str(write(tmp_path, KVM, region(0), line)))
    assert result.exit_code == 1
    assert all(each.isprintable() for each in result.output.splitlines())


def test_features_of_the_host_decide_how_it_runs(kernel: Kernel, tmp_path: Path) -> None:
    file = write(tmp_path, KVM, region(0), region(1 << 16))
    assert vmm("replay", str(file)).exit_code == 0
    kernel.features = msgspec.structs.replace(kernel.features, smm=False, address_spaces=1)
    assert vmm("replay", str(file)).exit_code == 0


@pytest.mark.usefixtures("kernel")
def test_slots_that_leave_no_room_for_a_guest_are_said_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(places, "_GUEST_SLOTS", (400,))
    file = write(tmp_path, KVM, region(400))
    result = vmm("replay", str(file))
    assert result.exit_code == 2
    assert "the slots leave no free id" in result.output


@pytest.mark.usefixtures("kernel")
def test_vms_that_are_too_many_to_run_together_are_refused_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vmm.cli.replay.MAX_OPERATIONS", 3)
    second = "20 ioctl(3, KVM_CREATE_VM, 0) = 8"
    calls = [region(each, each * 0x10000, head=pid) for pid in ("7 ", "20 ") for each in (1, 2)]
    file = write(tmp_path, KVM, second, *calls)
    result = vmm("replay", str(file))
    assert result.exit_code == 2
    assert "2 VMs make 4 calls, and 3 run here at most: --vm N runs one of them" in result.output
    assert vmm("replay", "--vm", "2", str(file)).exit_code == 0
