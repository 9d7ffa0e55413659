"""The library and `vmm record` on wrong kernels: a difference, or an error that names the call.

Never a pass, and never an error of this program. The pytest plugin is in `test_plugin.py`.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import lab

ROOT = Path(__file__).parents[2]
TIME_LIMIT_S = 120.0

PROGRAM = """
import vmm

(scenario,) = vmm.curated_scenarios("move-then-delete-then-create")
checked = vmm.run_scenario(scenario, time_limit_s=2)
print(checked.verdict.status.value)
again = vmm.judge(vmm.record_scenario(scenario, time_limit_s=2))
print(again.status.value)
print(vmm.describe(checked))
"""


def run(*command: object, fault: str = "", call: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=lab.environment(fault, os.environ, call),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )


def program(fault: str = "", call: str = "") -> "subprocess.CompletedProcess[str]":
    return run(sys.executable, "-c", PROGRAM, fault=fault, call=call)


@pytest.mark.parametrize(
    ("fault", "call", "status", "said"),
    [
        ("delete-lost", "", "differs", "by hole: a gpa without a slot is MMIO"),
        ("move-refused", "", "differs", "EINVAL"),
        ("", "KVM_RUN:kill=9:after=60", "inconclusive", "died: SIGKILL"),
        ("", "KVM_RUN:hang=1:after=60", "inconclusive", "hung: no end within 2 s"),
    ],
)
def test_a_scenario_on_a_wrong_kernel_has_the_verdict_that_vmm_run_gives(
    fault: str, call: str, status: str, said: str
) -> None:
    done = program(fault, call)
    assert done.stdout.splitlines()[:2] == [status, status], done.stderr
    assert said in done.stdout


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("KVM_GET_API_VERSION:errno=22", "RuntimeError: the kernel cannot be asked what it can do"),
        ("KVM_SET_REGS:errno=4:times=1", "rflags=0x2): EINTR"),
        ("CLOSE:errno=5", "close(a VM): EIO"),
        ("KVM_RUN:direction=2", "an exit with mmio.is_write=2"),
        ("KVM_CHECK_EXTENSION:answer=0", "OSError: [Errno 19] KVM_CAP_USER_MEMORY is 0"),
        ("KVM_CREATE_VM:errno=16", "OSError: [Errno 19] KVM_CREATE_VM: EBUSY"),
    ],
)
def test_a_kernel_that_cannot_be_asked_is_an_error_that_names_the_call(
    call: str, error: str
) -> None:
    done = program(call=call)
    assert (done.returncode, done.stdout) == (1, "")
    assert error in done.stderr.splitlines()[-1]


SCRIPT = "set 1 100 1 0; set 1 200 1 0; read 200; delete 1; delete 1; set 1 100 2 1 log; write 100"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("fault", "call", "status", "said"),
    [
        ("", "", 0, "PASSED       VM 1, run here"),
        ("move-lost", "", 1, "DIFFERS      VM 1, run here"),
        ("", "KVM_SET_REGS:errno=22", 1, "rflags=0x2): EINVAL"),
        ("", "KVM_GET_API_VERSION:errno=22", 1, "KVM_GET_API_VERSION(): EINVAL"),
        ("", "KVM_CHECK_EXTENSION:answer=0", 4, "KVM_CAP_USER_MEMORY is 0"),
        ("", "KVM_RUN:kill=9:after=60", 3, "INCONCLUSIVE VM 1, run here: died: SIGKILL"),
    ],
)
def test_a_recorded_vmm_is_run_again_on_a_wrong_kernel(
    fault: str, call: str, status: int, said: str
) -> None:
    """What is recorded is right: the VMM runs on the real kernel, and only the replay does not."""
    plays = f"printf -- '-\\t{SCRIPT}\\n' | {shlex.quote(str(lab.build_witness()))}"
    clean = f"unset LD_PRELOAD WRONG_KERNEL WRONG_CALL; {plays}"
    vmm = (sys.executable, "-m", "vmm.cli", "record", "--", "sh", "-c", clean)
    done = run(*vmm, fault=fault, call=call)
    printed = done.stdout + done.stderr
    assert (done.returncode, said in printed) == (status, True), printed
    assert "PASSED       as traced" in printed
    assert "Traceback" not in printed
    assert "internal error" not in printed
