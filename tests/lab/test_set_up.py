"""A kernel that refuses what every VMM needs, or lies or hangs while it is probed.

For every command that is a difference, or inconclusive, and named with its arguments; it is never
an error of this program, nor taken for a host that lacks something.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import zygote
from tests.lab import lab
from vmm.scenario.codec import scenario_text
from vmm.scenario.operations import NewVm, Scenario, Touch

TIME_LIMIT_S = 120.0
SCENARIO = "create-one-page"


IMPATIENT = (
    "from vmm.execution.probe import child; import runpy, sys; sys.argv[0] = 'vmm'; "
    "child.TIME_LIMIT_S = 2.0; runpy.run_module('vmm.cli', run_name='__main__')"
)


def impatient(call: str, *args: object) -> "subprocess.CompletedProcess[str]":
    """Do what `vmm` does, with two seconds for probing."""
    return subprocess.run(
        [sys.executable, "-c", IMPATIENT, *map(str, args)],
        env=lab.environment(call=call),
        cwd=lab.HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )


def vmm(call: str, *args: object) -> "subprocess.CompletedProcess[str]":
    """Run a command on a kernel that answers a call wrongly."""
    return good(zygote.vmm(*args, env=lab.environment(call=call)))


def good(result: "subprocess.CompletedProcess[str]") -> "subprocess.CompletedProcess[str]":
    """Return what a command came to, which must be no error of its own."""
    assert "Traceback" not in result.stdout + result.stderr
    assert "internal error" not in result.stdout + result.stderr
    return result


def checked(
    tmp_path: Path,
    call: str,
    *args: object,
    command: Callable[..., "subprocess.CompletedProcess[str]"] = vmm,
) -> tuple[int, dict[str, Any]]:
    """Return exit status and JSON of `vmm check` on such a kernel."""
    file = tmp_path / "result.json"
    result = good(command(call, "check", *args, "--json", file))
    data: dict[str, Any] = json.loads(file.read_text())
    assert data["exit_status"] == result.returncode
    return result.returncode, data


WRONG_AT_ONCE = [
    ("KVM_SET_SREGS:errno=22", "KVM_SET_SREGS("),
    ("KVM_GET_SREGS:errno=14", "KVM_GET_SREGS("),
    ("KVM_SET_REGS:errno=22", "KVM_SET_REGS(rax=0x0, "),
    ("KVM_CREATE_VCPU:errno=22", "KVM_CREATE_VCPU("),
    ("KVM_CREATE_VM:errno=22", "KVM_CREATE_VM("),
    ("KVM_GET_VCPU_MMAP_SIZE:errno=22", "KVM_GET_VCPU_MMAP_SIZE("),
    ("KVM_GET_VCPU_MMAP_SIZE:answer=12289", "KVM_GET_VCPU_MMAP_SIZE(): 12289, and not 2 pages"),
    (
        "KVM_GET_VCPU_MMAP_SIZE:answer=8192",
        "(KVM_CAP_COALESCED_MMIO): 2, and a vCPU shares pages",
    ),
    ("KVM_CREATE_VCPU:answer=999999", "KVM_CREATE_VCPU(0): 999999, which is no new file"),
    ("KVM_CREATE_VM:answer=1", "KVM_CREATE_VM(0): 1, which is no new file"),
    ("KVM_CHECK_EXTENSION:answer=-1", "KVM_CHECK_EXTENSION(KVM_CAP_IRQCHIP): errno 4095"),
    ("KVM_GET_API_VERSION:answer=13", "KVM_GET_API_VERSION(): 13, and not 12"),
    ("KVM_CHECK_EXTENSION:errno=22", "KVM_CHECK_EXTENSION("),
    ("KVM_GET_SUPPORTED_CPUID:errno=22", "KVM_GET_SUPPORTED_CPUID("),
    ("KVM_ENABLE_CAP:errno=1", "KVM_ENABLE_CAP(cap=0xa8"),
    ("KVM_SET_TSS_ADDR:errno=22", "KVM_SET_TSS_ADDR(0xfffbd000"),
    ("KVM_CREATE_IRQCHIP:errno=22", "KVM_CREATE_IRQCHIP("),
    ("CREATE:errno=22", "KVM_SET_USER_MEMORY_REGION(slot=0x0, flags=0x0, "),
    ("DELETE:errno=22", "memory_size=0x0, userspace_addr=0x0): EINVAL"),
    ("MMAP:errno=13", "mmap of a vCPU("),
    # Interrupted for ever, a number where there is none to give, an argument written to.
    ("KVM_CREATE_VM:errno=4", "KVM_CREATE_VM(0): EINTR"),
    ("KVM_GET_SUPPORTED_CPUID:errno=7", "KVM_GET_SUPPORTED_CPUID(nent=0x4000, "),
    ("KVM_GET_SUPPORTED_CPUID:other=1", "KVM_GET_SUPPORTED_CPUID(): 0 entries"),
    ("KVM_GET_SUPPORTED_CPUID:writes=1", "KVM_GET_SUPPORTED_CPUID(): 2779096485 entries"),
    ("KVM_RUN:answer=7", "KVM_RUN(): 7, and not 0"),
    ("CREATE:answer=7", "memory_size=0x1000, userspace_addr="),
    ("CREATE:writes=1", "its argument, which it only reads, was written to"),
    ("KVM_GET_REGS:other=1", "KVM_GET_REGS(): rax=0x0, which was set to 0x111122220000"),
    ("KVM_GET_SREGS:other=1", "KVM_GET_SREGS(): cs.base=0x0, which was set to 0x20000"),
    ("KVM_GET_REGS:other=1:after=1", "KVM_GET_REGS(): rax=0x0, which was 0x74 at the last exit"),
    ("KVM_GET_REGS:halves=1", "rax=0x22220000, which was set to 0x111122220000"),
    ("KVM_CREATE_VCPU:clears=1", "rax=0x0, which was set to 0x111122220000"),
    ("KVM_GET_REGS:writes=1", "rax=0xa5a5a5a5a5a5a5a5, which was set to"),
    ("KVM_SET_REGS:writes=1", "its argument, which it only reads, was written to"),
    # A structure taken for a larger one.
    ("CREATE:beyond=1", "userspace_addr="),
    ("DELETE:beyond=128", "memory_size=0x0, userspace_addr=0x0): EFAULT"),
    ("KVM_GET_DIRTY_LOG:beyond=8", "KVM_GET_DIRTY_LOG(slot=0x1, "),
    ("KVM_GET_SREGS:beyond=8", "KVM_GET_SREGS("),
    ("KVM_ENABLE_CAP:beyond=8", "KVM_ENABLE_CAP(cap=0xa8"),
    ("KVM_GET_DIRTY_LOG:errno=22", "KVM_GET_DIRTY_LOG(slot=0x1, "),
    ("NR_MEMSLOTS:answer=0", "KVM_CHECK_EXTENSION(KVM_CAP_NR_MEMSLOTS): 0x0 is not within"),
    ("NR_MEMSLOTS:answer=2147483647", "(KVM_CAP_NR_MEMSLOTS): 0x7fffffff is not within"),
    # A touch that fails, ends in another way, or reads other memory.
    ("KVM_RUN:errno=14", "KVM_RUN(): the vCPU stops: EFAULT; the guest reads gpa 0x0, in a"),
    ("KVM_RUN:errno=4", "KVM_RUN(): the vCPU stops: EINTR; the guest reads gpa 0x0, in a"),
    ("KVM_RUN:instead=8", "KVM_RUN(): shutdown; the guest executes hlt"),
    ("KVM_RUN:goes=1", "KVM_RUN(): hlt, and not EINTR, with immediate_exit=1"),
    ("KVM_RUN:exit=9999", "KVM_RUN(): the vCPU stops: exit-9999"),
    ("KVM_RUN:exit=6", "KVM_RUN(): "),
    ("KVM_RUN:exit=31:times=1", "KVM_RUN(): the vCPU stops: dirty-ring-full"),  # Without a ring.
    ("KVM_RUN:exit=2:after=1", "KVM_RUN(): the vCPU stops: io (port="),
    ("KVM_RUN:exit=8:after=1", "KVM_RUN(): no access to the page before gpa 0x"),
    ("KVM_SET_CPUID2:errno=22", "KVM_SET_CPUID2(nent="),
    ("CREATE:other=1", "KVM_RUN(): 0x0, no exit; the guest reads gpa 0x0, in a slot"),
    # One EINTR of a call that no signal interrupts, and a close that is refused.
    ("KVM_SET_REGS:errno=4:times=1", "rflags=0x2): EINTR"),
    ("CREATE:errno=4:times=1", "userspace_addr="),
    ("CLOSE:errno=5", "close(a VM): EIO"),
    # More is offered than is taken: another option, and a larger ring.
    ("KVM_CHECK_EXTENSION:cap=168:answer=7", "KVM_ENABLE_CAP(cap=0xa8, flags=0x0, args=0x07"),
    ("KVM_CHECK_EXTENSION:cap=192:answer=2097152", "args=0x0000200000"),
    # Less is offered than is there.
    ("KVM_CHECK_EXTENSION:cap=16:answer=0", "(KVM_CAP_SYNC_MMU): 0, and a slot follows"),
    ("KVM_CHECK_EXTENSION:cap=21:answer=0", "_WORKS): 0, and a slot that is deleted is gone"),
    ("KVM_CHECK_EXTENSION:cap=30:answer=0", "_WORKS): 0, and one slot takes the place of two"),
    ("KVM_CHECK_EXTENSION:cap=4:answer=0", "(KVM_CAP_SET_TSS_ADDR): 0, and the call is taken"),
    ("KVM_CHECK_EXTENSION:cap=37:answer=0", "_MAP_ADDR): 0, and the call is taken"),
    ("KVM_CHECK_EXTENSION:cap=9:answer=1048576", ", and KVM_CAP_NR_VCPUS is 1048576"),
    ("KVM_CHECK_EXTENSION:cap=66:answer=1048576", ", and KVM_CAP_MAX_VCPUS is 1048576"),
    ("KVM_CHECK_EXTENSION:cap=66:answer=3", "(KVM_CAP_MAX_VCPUS): 3, and there may be one more"),
    ("KVM_CHECK_EXTENSION:cap=192:answer=65536", "(KVM_CAP_DIRTY_LOG_RING): 0x10000, and more"),
    ("KVM_CHECK_EXTENSION:cap=213:answer=1", "(KVM_CAP_DISABLE_QUIRKS2): 0x1, and more"),
    ("KVM_RUN:direction=2", "KVM_RUN(): an exit with mmio.is_write=2"),
    # Calls of a forked child, which are EIO.
    ("KVM_GET_DIRTY_LOG:foreign=1", "KVM_GET_DIRTY_LOG(): something else than EIO in a forked"),
    ("KVM_GET_REGS:foreign=1", "KVM_GET_REGS(): something else than EIO in a forked child"),
    ("KVM_RESET_DIRTY_RINGS:foreign=1", "KVM_RESET_DIRTY_RINGS(): something else than EIO"),
]
OTHERS = (("run", SCENARIO), ("fuzz", "--seconds", "1"), ("info",))


@pytest.mark.parametrize(("call", "named"), WRONG_AT_ONCE[::2])
def test_a_check_of_a_kernel_that_is_wrong_while_it_is_asked_differs(
    tmp_path: Path, call: str, named: str
) -> None:
    """Every command probes first, and alike: `check` is tried with one half of these calls."""
    status, data = checked(tmp_path, call)
    (probing,) = data["scenarios"]
    assert (status, probing["name"], probing["status"]) == (1, "probing", "differs")
    assert named in probing["difference"]["observed"]
    assert len(data["not_run"]) > 400


@pytest.mark.parametrize(
    ("call", "named", "command"),
    [(*wrong, OTHERS[index % len(OTHERS)]) for index, wrong in enumerate(WRONG_AT_ONCE[1::2])],
)
def test_other_commands_find_a_kernel_wrong_while_it_is_asked(
    tmp_path: Path, call: str, named: str, command: tuple[str, ...]
) -> None:
    file = tmp_path / "result.json"
    wanted = ("--json", str(file)) if command[0] == "run" else ()
    done = vmm(call, *command, *wanted)
    assert done.returncode == 1
    assert named in done.stderr
    if wanted:
        data = json.loads(file.read_text())
        assert (data["exit_status"], data["not_run"]) == (1, [SCENARIO])
        assert named in data["scenarios"][0]["difference"]["observed"]


@pytest.mark.parametrize(("call", "number"), [("KVM_RUN", 12), ("KVM_CREATE_VCPU", 24)])
def test_a_host_without_memory_or_descriptors_is_no_difference(
    tmp_path: Path, call: str, number: int
) -> None:
    status, data = checked(tmp_path, f"{call}:errno={number}")
    assert (status, data["scenarios"][0]["status"]) == (3, "inconclusive")
    argument = "0" if call == "KVM_CREATE_VCPU" else ""
    assert data["scenarios"][0]["reason"].startswith(f"the host: {call}({argument}): E")


def test_a_kernel_without_memslots_by_its_own_word_runs_nothing(tmp_path: Path) -> None:
    status, data = checked(tmp_path, "KVM_CHECK_EXTENSION:answer=0")
    assert status == 4
    assert "KVM_CAP_USER_MEMORY is 0" in data["obstacle"]


def test_a_kernel_of_few_slots_passes(tmp_path: Path) -> None:
    patterns = ("slot-*", "refuse-*", "delete-*", "*-table*", "dirty-*")
    status, data = checked(tmp_path, "NR_MEMSLOTS:answer=509", *patterns)
    assert (status, data["features"]["nr_memslots"]) == (0, 509)
    assert {each["status"] for each in data["scenarios"]} <= {"passed", "known", "skipped"}


@pytest.mark.parametrize("slots", [1, 32, 508])
def test_a_kernel_of_too_few_slots_runs_nothing(tmp_path: Path, slots: int) -> None:
    status, data = checked(tmp_path, f"NR_MEMSLOTS:answer={slots}")
    assert status == 4
    assert f"KVM_CAP_NR_MEMSLOTS is {slots}" in data["obstacle"]


def test_a_kernel_in_use_by_another_hypervisor_runs_nothing(tmp_path: Path) -> None:
    status, data = checked(tmp_path, "KVM_CREATE_VM:errno=16")
    assert status == 4
    assert "another hypervisor" in data["obstacle"]


def test_a_kernel_that_hangs_while_it_is_asked_is_inconclusive(tmp_path: Path) -> None:
    status, data = checked(tmp_path, "KVM_RUN:hang=1", command=impatient)
    assert (status, data["scenarios"][0]["status"]) == (3, "inconclusive")
    reason = data["scenarios"][0]["reason"]
    assert reason.startswith("hung: no end within 2 s")
    assert "a page is read by a guest" in reason


def test_a_kernel_that_shares_less_than_it_says_is_inconclusive(tmp_path: Path) -> None:
    status, data = checked(tmp_path, f"KVM_GET_VCPU_MMAP_SIZE:answer={1 << 30}")
    assert (status, data["scenarios"][0]["status"]) == (3, "inconclusive")
    reason = data["scenarios"][0]["reason"]
    assert reason == "died: SIGBUS; under way: the memory is read that a vCPU shares"


def test_a_fault_that_does_not_exist_is_told_before_anything_runs(tmp_path: Path) -> None:
    script, file = Path(lab.__file__).parents[2] / "scripts/wrong-kernel", tmp_path / "ran"
    command = (script, "no-such-fault", "touch", file)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, file.exists()) == (2, False)
    assert done.stderr.startswith("wrong-kernel: no fault is named 'no-such-fault'; ")
    subprocess.run((script, "move-refused:after=1", "touch", file), check=True)
    assert file.exists()


@pytest.mark.parametrize(
    ("call", "scenario"),
    [
        ("KVM_CREATE_GUEST_MEMFD", "memfd-create-and-close"),
        ("KVM_CLEAR_DIRTY_LOG", "clear-grid-of-64-pages"),
    ],
)
def test_a_kernel_that_writes_to_what_it_only_reads_differs(
    tmp_path: Path, call: str, scenario: str
) -> None:
    """The numbers of these requests say that the kernel writes to their argument."""
    status, data = checked(tmp_path, f"{call}:writes=1", scenario)
    (result,) = data["scenarios"]
    if result["status"] == "skipped":
        pytest.skip(result["reason"])
    assert (status, result["status"]) == (1, "differs")
    assert "its argument, which it only reads, was written to" in result["difference"]["observed"]


def mode_switches(folder: Path) -> Path:
    """Return a scenario with many VMs, and guests that switch modes: more than probing does."""
    touches = (Touch(0x10000), Touch(0x1_0000_0000), Touch(0x10000))
    operations = (*(op for _ in range(24) for op in (NewVm(), *touches)),)
    file = folder / "switches.json"
    file.write_text(scenario_text(Scenario("switches", operations, survey="none")))
    return file


@pytest.mark.parametrize(
    ("call", "after"),
    [
        ("KVM_SET_SREGS", 20),
        ("KVM_SET_REGS", 20),
        ("KVM_CREATE_VCPU", 16),
        ("MMAP", 16),
        ("CLOSE", 28),
    ],
)
def test_what_is_refused_in_a_scenario_differs_there(tmp_path: Path, call: str, after: int) -> None:
    wrong = f"{call}:errno=22:after={after}"
    name = {"MMAP": "mmap of a vCPU", "CLOSE": "close"}.get(call, call)
    history = tmp_path / "h.jsonl"
    ran = vmm(wrong, "run", mode_switches(tmp_path), "--history", history)
    assert ran.returncode == 1
    assert re.search(rf"observed  {name}\(.*\): EINVAL\n", ran.stdout)
    assert "by set-up: what every VMM needs" in ran.stdout
    judged = vmm("", "judge", history)
    assert (judged.returncode, judged.stdout.count("DIFFERS")) == (1, 1)


def test_a_slot_that_a_churn_cannot_delete_differs() -> None:
    ran = vmm("DELETE:errno=22:after=60", "run", "a-thousand-changes-later")
    assert ran.returncode == 1
    assert "  observed  EINVAL\n" in ran.stdout


@pytest.mark.parametrize(
    ("call", "scenario"),
    [
        ("KVM_CHECK_EXTENSION:cap=231:answer=0", "second-form-as-the-capability-says"),
        ("KVM_CHECK_EXTENSION:cap=81:answer=0", "readonly-as-the-capability-says"),
        ("KVM_CHECK_EXTENSION:cap=168:answer=0", "dirty-tracking-as-the-capabilities-say"),
        ("KVM_CHECK_EXTENSION:cap=192:answer=0", "dirty-tracking-as-the-capabilities-say"),
        ("KVM_CHECK_EXTENSION:cap=223:answer=0", "dirty-tracking-as-the-capabilities-say"),
        ("KVM_CHECK_EXTENSION:cap=168:answer=1", "manual-protection-options"),
        ("KVM_CHECK_EXTENSION:cap=244:answer=7", "memfd-flags-as-the-capability-says"),
        ("KVM_CHECK_EXTENSION:cap=234:answer=0", "guest-memfd-as-the-capability-says"),
        ("KVM_CHECK_EXTENSION:cap=15:answer=0", "devices-as-the-capabilities-say"),
        ("KVM_CHECK_EXTENSION:cap=36:answer=0", "devices-as-the-capabilities-say"),
        ("KVM_CHECK_EXTENSION:cap=0:answer=0", "irqchip-before-and-after-a-vcpu"),
        ("KVM_CHECK_EXTENSION:cap=118:answer=2", "refuse-an-address-space-beyond-the-last"),
    ],
)
def test_a_kernel_that_takes_more_or_less_than_it_offers_differs(
    tmp_path: Path, call: str, scenario: str
) -> None:
    status, data = checked(tmp_path, call, scenario)
    (result,) = data["scenarios"]
    if result["status"] == "skipped":
        pytest.skip(result["reason"])
    assert (status, result["status"]) == (1, "differs")


@pytest.mark.parametrize(
    ("wrong", "observed"),
    [
        ("KVM_SET_SREGS:errno=4:after=20:times=1", r"KVM_SET_SREGS\(.*\): EINTR"),
        ("KVM_RUN:direction=2:after=50:times=1", r"KVM_RUN\(\): an exit with mmio\.is_write=2"),
    ],
)
def test_one_wrong_answer_in_a_scenario_is_enough(
    tmp_path: Path, wrong: str, observed: str
) -> None:
    ran = vmm(wrong, "run", mode_switches(tmp_path))
    assert (ran.returncode, len(re.findall(rf"observed  {observed}\n", ran.stdout))) == (1, 1)


def test_a_call_that_a_signal_interrupts_once_is_issued_again(tmp_path: Path) -> None:
    ran = vmm("KVM_CREATE_VM:errno=4:after=20:times=1", "run", mode_switches(tmp_path))
    assert (ran.returncode, "DIFFERS" in ran.stdout) == (0, False)


@pytest.mark.parametrize(
    ("call", "after"),
    [
        ("MMAP", 16),
        pytest.param("KVM_CREATE_VCPU", 16, marks=pytest.mark.long),
        pytest.param("KVM_SET_SREGS", 20, marks=pytest.mark.long),
        pytest.param("KVM_SET_REGS", 20, marks=pytest.mark.long),
    ],
)
def test_what_is_refused_in_a_random_scenario_is_found(
    tmp_path: Path, call: str, after: int
) -> None:
    wrong, out = f"{call}:errno=22:after={after}", tmp_path / "found"
    fuzzed = vmm(
        wrong,
        "fuzz",
        "--seconds",
        "3",
        "--findings",
        "1",
        "--jobs",
        "1",
        "--out",
        out,
        "--seed",
        "1",
    )
    assert fuzzed.returncode == 1
    assert any(call.lower() in found.name for found in out.iterdir())


def test_a_vcpu_that_cannot_be_made_for_lack_of_descriptors_is_the_hosts(tmp_path: Path) -> None:
    ran = vmm("KVM_CREATE_VCPU:errno=24:after=16", "run", mode_switches(tmp_path))
    assert ran.returncode == 3
    assert "INCONCLUSIVE switches: the host: KVM_CREATE_VCPU(0): EMFILE\n" in ran.stdout


@pytest.mark.parametrize(
    ("answer", "status", "begin"),
    [
        ("errno=22", 1, "vmm: create"),
        ("answer=7", 1, "vmm: create"),
        ("errno=12", 3, "vmm: the host: create"),
    ],
)
def test_what_is_refused_while_it_is_measured_is_never_taken_for_nothing_that_could_run(
    answer: str, status: int, begin: str
) -> None:
    wrong = f"KVM_SET_USER_MEMORY_REGION:{answer}:after=200"
    measured = vmm(wrong, "bench", "--work", "create", "--slots", "300", "--rounds", "3", "--no-c")
    assert measured.returncode == status
    assert measured.stderr.splitlines()[-1].startswith(f"{begin} with 300 slots: KVM_SET_USER_")
