from pathlib import Path

import pytest

from vmm.lab.cache import cache_folder
from vmm.lab.kernel import Kernel
from vmm.lab.log import Reports
from vmm.lab.machine import Backend, Machine
from vmm.lab.process import Late
from vmm.lab.run import judged

MACHINE = Machine(Kernel("k", Path("k"), "6.12"), Backend.SVM, ("kvm_amd.npt=0",), limit_s=5)


def ended(status: int) -> Reports:
    return Reports(is_ready=True, is_over=True, status=status, parameters={"kvm_amd.npt": "N"})


@pytest.mark.parametrize("status", [0, 1, 2, 3, 4, 5, 70])
def test_a_command_s_status_is_the_run_s(status: int) -> None:
    assert judged(MACHINE, ended(status), Late.NOT, []).status == status


def test_a_pass_with_a_complaint_of_the_kernel_is_a_difference() -> None:
    reports = ended(0)
    reports.complaint, reports.has_begun = "WARNING: CPU: 0", True
    ending = judged(MACHINE, reports, Late.NOT, [])
    assert ending.status == 1
    assert "WARNING: CPU: 0" in ending.why


def test_a_panic_in_the_middle_is_a_difference() -> None:
    reports = Reports(is_ready=True, complaint="Kernel panic", has_begun=True, has_panicked=True)
    assert judged(MACHINE, reports, Late.NOT, []).status == 1


def test_a_panic_at_boot_says_nothing_about_memslots() -> None:
    reports = Reports(complaint="Kernel panic", has_panicked=True)
    assert judged(MACHINE, reports, Late.NOT, []).status == 3


@pytest.mark.parametrize(
    ("reports", "late", "said"),
    [
        (Reports(), Late.NOT, "stopped before the command began"),
        (Reports(is_ready=True, last_line="last words"), Late.NOT, "last words"),
        (Reports(is_ready=True, is_over=True), Late.NOT, "without the command's status"),
        (Reports(is_ready=True, status=0), Late.NOT, "before all had ended"),
        (Reports(is_ready=True, status=0), Late.TIME, "had ended, but not the machine"),
        (Reports(is_ready=True), Late.TIME, "the command was still running"),
        (Reports(), Late.TIME, "it had not booted"),
        (
            Reports(is_ready=True, under_way="move-up", last_line="x"),
            Late.DEAD,
            "the machine hangs in move-up: no sign of life for 120 s; its last line is: x",
        ),
        (Reports(is_ready=True, under_way="move-up"), Late.TIME, "still running in move-up"),
        (Reports(fatal="there is no /dev/kvm"), Late.NOT, "no /dev/kvm"),
        (Reports(is_ready=True, is_over=True, status=127), Late.NOT, "status 127"),
        (Reports(is_ready=True, is_over=True, status=137), Late.NOT, "status 137"),
    ],
)
def test_without_a_whole_sentinel_it_is_inconclusive(
    reports: Reports, late: Late, said: str
) -> None:
    ending = judged(MACHINE, reports, late, [])
    assert ending.status == 3
    assert said in ending.why


def test_what_the_emulator_says_is_passed_on_where_nothing_booted() -> None:
    ending = judged(MACHINE, Reports(), Late.NOT, ["qemu: could not load kernel"])
    assert "could not load kernel" in ending.why


@pytest.mark.parametrize(("value", "status"), [("N", 0), ("0", 0), ("Y", 2), ("-", 2)])
def test_a_parameter_that_did_not_take_effect_is_said(value: str, status: int) -> None:
    reports = ended(0)
    reports.parameters = {"kvm_amd.npt": value}
    assert judged(MACHINE, reports, Late.NOT, []).status == status


def test_a_user_without_a_name_has_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/.cache/memslot-vmm")
