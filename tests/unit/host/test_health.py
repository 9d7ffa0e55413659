"""Kernel health on a tree of fake kernel files."""

from pathlib import Path

import pytest

from vmm.host.health import (
    KernelWatch,
    Problem,
    excerpts,
    kernel_messages,
    names_child,
    without_others,
)
from vmm.host.roots import Roots

WARN = [
    "------------[ cut here ]------------",
    "WARNING: CPU: 1 PID: 17 at arch/x86/kvm/mmu/mmu.c:6842 kvm_mmu_zap+0x12/0x40 [kvm]",
    "RIP: 0010:kvm_mmu_zap+0x12/0x40 [kvm]",
    "---[ end trace 0000000000000000 ]---",
]


class FakeKernel:
    """The files that a kernel's health shows in."""

    def __init__(self, base: Path) -> None:
        self.roots = Roots(base / "proc", base / "sys", base / "kmsg")
        (base / "proc/sys/kernel").mkdir(parents=True)
        (base / "sys/kernel").mkdir(parents=True)
        (base / "proc/self").mkdir()
        (base / "proc/self/maps").touch()
        self.set(tainted=0, warn_count=0, oops_count=0)
        self.roots.kmsg.write_bytes(b"4,1,10,-;WARNING: from long ago\n")

    def set(self, **values: int) -> None:
        for name, value in values.items():
            root = self.roots.proc / "sys" if name == "tainted" else self.roots.sys
            (root / "kernel" / name).write_text(f"{value}\n")

    def log(self, *lines: str, prefix: int = 4) -> None:
        with self.roots.kmsg.open("a") as file:
            file.writelines(f"{prefix},2,20,-;{line}\n" for line in lines)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def test_a_quiet_kernel_is_healthy_and_what_was_logged_before_does_not_count(
    kernel: FakeKernel,
) -> None:
    with KernelWatch(kernel.roots) as watch:
        kernel.log("kvm: a line that tells of nothing bad")
        assert watch.news() == ()
        assert watch.weaknesses == []


def test_a_warning_is_told_once_with_its_excerpt(kernel: FakeKernel) -> None:
    with KernelWatch(kernel.roots) as watch:
        kernel.log("eth0: link up", *WARN, "eth0: link down")
        kernel.set(warn_count=1, tainted=1 << 9)
        log, taint, count = watch.news()
        assert log.what == WARN[1]
        assert log.excerpt == tuple(WARN)
        assert taint.what == "the kernel is newly tainted (W: the kernel issued a warning)"
        assert count.what == "warn_count went from 0 to 1"
        assert watch.news() == ()


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: possible circular locking dependency detected",
        "BUG: KASAN: slab-use-after-free in kvm_mmu_zap+0x1/0x2",
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "kernel BUG at virt/kvm/kvm_main.c:1234!",
        "Oops: 0002 [#1] PREEMPT SMP",
        "Oops: general protection fault, probably for non-canonical address 0xdead",
        "general protection fault, probably for non-canonical address 0xdead: 0000 [#1]",
        "INFO: task qemu:17 blocked for more than 120 seconds.",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "INFO: rcu_sched detected stalls on CPUs/tasks",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 22s!",
        "UBSAN: array-index-out-of-bounds in virt/kvm/kvm_main.c:1",
        "refcount_t: underflow; use-after-free.",
        "unchecked MSR access error: WRMSR to 0x10",
    ],
)
def test_every_class_of_complaint_is_recognised(kernel: FakeKernel, line: str) -> None:
    with KernelWatch(kernel.roots) as watch:
        kernel.log(line)
        assert [problem.what for problem in watch.news()] == [line]


@pytest.mark.parametrize(
    "line",
    [
        "kvm-pvm: INTERNAL_ERROR in batch emul: rip=0x800 cpl=0 cr3=0x0",
        "ACPI BIOS Error (bug): Could not resolve symbol",
        "usb 1-1: Warning! Unlikely big volume range",
        "x86/mm: DEBUG: nothing",
        "INFO: everything is fine",
    ],
)
def test_other_lines_are_no_complaint(kernel: FakeKernel, line: str) -> None:
    with KernelWatch(kernel.roots) as watch:
        kernel.log(line)
        assert watch.news() == ()


def test_what_a_process_writes_to_the_log_is_not_the_kernel_s(kernel: FakeKernel) -> None:
    with KernelWatch(kernel.roots) as watch:
        kernel.log(*WARN, prefix=8 + 4)
        assert watch.news() == ()


def test_lines_that_continue_a_record_are_left_out() -> None:
    record = b"4,2,20,-;first line\n SUBSYSTEM=pci\n DEVICE=+pci:0\n"
    assert kernel_messages(record) == ["first line"]


def test_two_complaints_are_two_excerpts_and_a_long_one_is_cut() -> None:
    found = excerpts([*WARN, "between", *WARN, "UBSAN: shift", *["more"] * 100])
    assert [len(lines) for lines in found] == [4, 4, 40]


def test_every_new_taint_is_named_and_an_old_one_is_not(kernel: FakeKernel) -> None:
    kernel.set(tainted=1 << 12)
    with KernelWatch(kernel.roots) as watch:
        kernel.set(tainted=1 << 12 | 1 << 7 | 1 << 31)
        (problem,) = watch.news()
        assert problem.what == (
            "the kernel is newly tainted (D: the kernel died recently (oops or BUG); bit 31)"
        )


def test_an_oops_is_counted(kernel: FakeKernel) -> None:
    with KernelWatch(kernel.roots) as watch:
        kernel.set(oops_count=2)
        assert [problem.what for problem in watch.news()] == ["oops_count went from 0 to 2"]


def test_a_log_that_cannot_be_read_weakens_the_verdict(kernel: FakeKernel) -> None:
    kernel.roots.kmsg.unlink()
    with KernelWatch(kernel.roots) as watch:
        kernel.set(warn_count=1)
        assert [problem.what for problem in watch.news()] == ["warn_count went from 0 to 1"]
        (weakness,) = watch.weaknesses
    assert weakness.startswith(f"kernel log not readable: {kernel.roots.kmsg}: No such file")


def test_counters_that_are_missing_weaken_the_verdict(kernel: FakeKernel) -> None:
    (kernel.roots.sys / "kernel/warn_count").unlink()
    (kernel.roots.sys / "kernel/oops_count").unlink()
    with KernelWatch(kernel.roots) as watch:
        assert watch.news() == ()
        assert watch.weaknesses == ["not readable: /sys/kernel/warn_count, /sys/kernel/oops_count"]


def test_a_host_without_proc_weakens_the_verdict(kernel: FakeKernel) -> None:
    (kernel.roots.proc / "self/maps").unlink()
    with KernelWatch(kernel.roots) as watch:
        assert watch.news() == ()
        (weakness,) = watch.weaknesses
    assert weakness == f"no {kernel.roots.proc}: what a VM leaves in its process is missed"


@pytest.mark.parametrize("spent", [{"warn_count": 3}, {"tainted": 1 << 9}])
def test_a_warning_before_the_run_is_told_as_a_weakness(
    kernel: FakeKernel, spent: dict[str, int]
) -> None:
    kernel.set(**spent)
    with KernelWatch(kernel.roots) as watch:
        assert watch.news() == ()
        (weakness,) = watch.weaknesses
    assert weakness.startswith("the kernel has warned before this run")
    assert "clear_warn_once" in weakness


def test_the_log_is_closed_in_the_end(kernel: FakeKernel) -> None:
    with KernelWatch(kernel.roots) as watch:
        kernel.log(*WARN)
    assert watch.news() == ()


def _told(process: str) -> Problem:
    return Problem("WARNING", ("[ cut here ]", f"WARNING: CPU: 0 PID: 7 Comm: {process} Not"))


def test_a_complaint_that_names_another_child_is_not_ours_nor_are_its_counters() -> None:
    counted = Problem("warn_count went from 0 to 1")
    ours, theirs, nobodys = _told("vmm7-0"), _told("vmm7-1"), _told("kworker/0:1")
    assert without_others((theirs, counted), "vmm7-0") == ()
    assert without_others((theirs, counted), "vmm7-1") == (theirs, counted)
    assert without_others((ours, theirs, counted), "vmm7-0") == (ours, counted)
    assert without_others((nobodys, counted), "vmm7-0") == (nobodys, counted)
    assert without_others((counted,), "vmm7-0") == (counted,)


def test_a_child_is_not_taken_for_one_whose_name_begins_alike() -> None:
    assert without_others((_told("vmm7-10"),), "vmm7-1") == ()
    assert names_child(_told("vmm7-10"), "vmm7-10")
    assert not names_child(_told("vmm7-10"), "vmm7-1")
