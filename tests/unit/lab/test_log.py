from pathlib import Path

import pytest

from vmm.lab.log import LogReader

NONCE = "1234abcd"


def read(path: Path, *parts: str) -> LogReader:
    """Return a reader that has seen a log grow part by part."""
    reader = LogReader(path, NONCE)
    for part in parts:
        with path.open("a") as file:
            file.write(part)
        reader.read()
    return reader


def test_a_report_counts_wherever_the_log_was_cut_in_reading(tmp_path: Path) -> None:
    text = f"[    3.1] memslot-lab {NONCE} ready\r\n[    4.1] memslot-lab {NONCE} status 3\r\n"
    for cut in range(len(text)):
        path = tmp_path / str(cut)
        reports = read(path, text[:cut], text[cut:]).reports
        assert reports.is_ready
        assert reports.status == 3
        assert not reports.is_over


def test_a_report_without_this_run_s_nonce_is_no_sentinel(tmp_path: Path) -> None:
    reports = read(tmp_path / "log", "[ 1.0] memslot-lab 99999999 status 0\n").reports
    assert reports.status is None


def test_a_report_that_was_cut_off_is_no_status(tmp_path: Path) -> None:
    reader = read(tmp_path / "log", f"[ 1.0] memslot-lab {NONCE} status")
    assert reader.close().status is None


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: CPU: 0 PID: 77 at virt/kvm/kvm_main.c:1612 kvm_set_memory_region+0x12/0x30 [kvm]",
        "BUG: unable to handle page fault for address: ffffc900000fd000",
        "BUG: KASAN: slab-out-of-bounds in search_memslots",
        "Oops: general protection fault, probably for non-canonical address",
        "kernel BUG at virt/kvm/kvm_main.c:99!",
        "Kernel panic - not syncing: Fatal exception",
        "WARNING: possible circular locking dependency detected",
        "BUG kvm_vcpu (Not tainted): Objects remaining in kvm_vcpu on __kmem_cache_shutdown()",
        "UBSAN: shift-out-of-bounds in arch/x86/kvm/mmu/mmu.c",
    ],
)
def test_what_a_kernel_complains_of_is_found(tmp_path: Path, line: str) -> None:
    text = f"[ 1.0] memslot-lab {NONCE} ready\n[    9.000001] {line}\n"
    reports = read(tmp_path / "log", text).reports
    assert reports.complaint == line
    assert reports.has_begun


@pytest.mark.parametrize(
    "line",
    [
        "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [python3:77]",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "kvm: exiting hardware virtualization",
    ],
)
def test_what_only_says_that_the_host_is_busy_is_no_complaint(tmp_path: Path, line: str) -> None:
    assert not read(tmp_path / "log", f"[ 9.0] {line}\n").reports.complaint


def test_the_place_of_a_complaint_is_told_where_its_line_has_none(tmp_path: Path) -> None:
    text = "[ 1.0] BUG: kernel NULL pointer dereference\n[ 1.1] RIP: 0010:kvm_zap+0x1/0x20 [kvm]\n"
    complaint = read(tmp_path / "log", text).reports.complaint
    assert complaint == "BUG: kernel NULL pointer dereference (at kvm_zap+0x1/0x20)"


def test_control_characters_of_a_guest_never_reach_the_terminal(tmp_path: Path) -> None:
    reports = read(tmp_path / "log", "[ 1.0] \x1b[31mBUG: bad\x07\n").reports
    assert reports.complaint == "[31mBUG: bad"


def test_how_far_a_check_is(tmp_path: Path) -> None:
    told = ("scenarios 3", "begin move-up", "alive", "skip huge", "begin move-down")
    text = "".join(f"[ 1.0] memslot-lab {NONCE} {each}\n" for each in told)
    reports = read(tmp_path / "log", text).reports
    assert (reports.scenarios, reports.begun, reports.under_way) == (3, 3, "move-down")
    assert not reports.notes
    assert not reports.last_line


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("kvm_amd: `7' invalid for parameter `npt'", " (kvm_amd: `7' invalid for parameter `npt')"),
        ("something else", ""),
    ],
)
def test_why_a_module_does_not_load_is_said_in_the_kernels_words(
    tmp_path: Path, said: str, told: str
) -> None:
    file = tmp_path / "log"
    why = "module kvm_amd does not load: Invalid argument"
    file.write_text(f"{said}\nmemslot-lab N fatal {why}\n")
    assert LogReader(file, "N").read().fatal == why + told
