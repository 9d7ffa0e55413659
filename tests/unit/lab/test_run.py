from pathlib import Path

import pytest

from vmm.lab.kernel import Kernel
from vmm.lab.log import Reports
from vmm.lab.machine import Backend, Machine
from vmm.lab.run import judged

MACHINE = Machine(Kernel("k", Path("k"), "6.12"), Backend.SVM, ("kvm_amd.npt=0",), limit_s=5)


def ended(status: int) -> Reports:
    return Reports(is_ready=True, is_over=True, status=status, parameters={"kvm_amd.npt": "N"})


@pytest.mark.parametrize("status", [0, 1, 2, 3, 4, 70])
def test_a_command_s_status_is_the_run_s(status: int) -> None:
    assert judged(MACHINE, ended(status), False, []).status == status


def test_a_pass_with_a_complaint_of_the_kernel_is_a_difference() -> None:
    reports = ended(0)
    reports.complaint, reports.has_begun = "WARNING: CPU: 0", True
    outcome = judged(MACHINE, reports, False, [])
    assert outcome.status == 1
    assert "WARNING: CPU: 0" in outcome.why


def test_a_panic_in_the_middle_is_a_difference() -> None:
    reports = Reports(is_ready=True, complaint="Kernel panic", has_begun=True, has_panicked=True)
    assert judged(MACHINE, reports, False, []).status == 1


def test_a_panic_at_boot_says_nothing_about_memslots() -> None:
    reports = Reports(complaint="Kernel panic", has_panicked=True)
    assert judged(MACHINE, reports, False, []).status == 3


@pytest.mark.parametrize(
    ("reports", "is_late", "said"),
    [
        (Reports(), False, "stopped before the command began"),
        (Reports(is_ready=True, last_line="last words"), False, "last words"),
        (Reports(is_ready=True, is_over=True), False, "without the command's status"),
        (Reports(is_ready=True, status=0), False, "before all had ended"),
        (Reports(is_ready=True, status=0), True, "had ended, but not the machine"),
        (Reports(is_ready=True), True, "the command was still running"),
        (Reports(), True, "it had not booted"),
        (Reports(fatal="there is no /dev/kvm"), False, "no /dev/kvm"),
        (Reports(is_ready=True, is_over=True, status=127), False, "status 127"),
        (Reports(is_ready=True, is_over=True, status=137), False, "status 137"),
    ],
)
def test_without_a_whole_sentinel_it_is_inconclusive(
    reports: Reports, is_late: bool, said: str
) -> None:
    outcome = judged(MACHINE, reports, is_late, [])
    assert outcome.status == 3
    assert said in outcome.why


def test_what_the_emulator_says_is_passed_on_where_nothing_booted() -> None:
    outcome = judged(MACHINE, Reports(), False, ["qemu: could not load kernel"])
    assert "could not load kernel" in outcome.why


@pytest.mark.parametrize(("value", "status"), [("N", 0), ("0", 0), ("Y", 2), ("-", 2)])
def test_a_parameter_that_did_not_take_effect_is_said(value: str, status: int) -> None:
    reports = ended(0)
    reports.parameters = {"kvm_amd.npt": value}
    assert judged(MACHINE, reports, False, []).status == status
