"""VMs that live and die beside: every death is what its name says, and leaks are seen."""

import os
import signal
from collections.abc import Iterator
from typing import get_args

import pytest

from kvm_abi import mman
from kvm_abi.raw import KvmError
from vmm.execution import lives
from vmm.execution.lives import live
from vmm.kvm.memory import HostMapping
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import Vm
from vmm.library.guest import assemble
from vmm.scenario.history import Closed, Stopped
from vmm.scenario.operations import PAGE_SIZE_BYTES, Death, Lives

pytestmark = pytest.mark.alone

DEATHS: tuple[Death, ...] = get_args(Death)


def left_by(kvm: Kvm, op: Lives) -> tuple[str, ...]:
    """Return what VMs have left behind that lived and died as they should."""
    outcome = live(kvm, op)
    assert isinstance(outcome, Closed)
    return outcome.left


def test_the_guest_that_never_ends_lets_interrupts_in() -> None:
    code = "sti; mov $0x800, %bx; 1: incb (%bx); add $0x1000, %bx; jnc 1b; 2: incw 0x100; jmp 2b"
    assert assemble(code) == lives._COUNT_FOREVER


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Files of VMs, which stay open behind the back of whoever closes a VM."""
    files: list[int] = []
    close = Vm.close

    def close_but_keep_a_copy(vm: Vm) -> None:
        if vm._fd >= 0:
            files.append(os.dup(vm.fd))
        close(vm)

    monkeypatch.setattr(Vm, "close", close_but_keep_a_copy)
    yield files
    for file in files:
        os.close(file)


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Mappings of vCPUs, which stay when the vCPU is closed, and keep its VM alive."""
    mappings: list[tuple[int, int]] = []
    with monkeypatch.context() as patch:
        patch.setattr("vmm.kvm.vcpu.mman.unmap_memory", lambda *mapping: mappings.append(mapping))
        yield mappings
    for address, size_bytes in mappings:
        mman.unmap_memory(address, size_bytes)


@pytest.mark.parametrize("death", DEATHS)
def test_every_death_leaves_nothing(kvm: Kvm, death: Death) -> None:
    handler = signal.getsignal(signal.SIGUSR1)
    files = os.listdir("/proc/self/fd")
    assert live(kvm, Lives(death, 3)) == Closed()
    assert os.listdir("/proc/self/fd") == files
    assert signal.getsignal(signal.SIGUSR1) == handler


@pytest.mark.parametrize("death", [death for death in DEATHS if "killed" not in death])
def test_file_of_a_vm_that_stays_open_is_seen(kvm: Kvm, death: Death, forgotten: list[int]) -> None:
    left = left_by(kvm, Lives(death, 2))
    assert len(forgotten) == len(left) == 2
    assert all("kvm-vm" in text for text in left)


def test_kernel_memory_of_vms_is_looked_at(
    kvm: Kvm, mapped: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.execution.kernelmemory.ATTEMPTS", 1)
    # A hundred a round, some 40 KiB each: more than others give back meanwhile.
    left = left_by(kvm, Lives("closed", 400, "kernel"))
    assert len(mapped) >= 400
    assert any(text.startswith("SUnreclaim of /proc/meminfo grows by") for text in left)


def test_guest_counts_while_its_vm_is_closed(kvm: Kvm) -> None:
    with lives._Life(kvm) as life, lives._Running(life) as running:
        life.vm.close()
        running.wait_for_more()


@pytest.mark.parametrize("death", ["closed-while-running", "killed"])
def test_guest_that_does_not_run_is_an_outcome(
    kvm: Kvm, death: Death, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGUSR1)
    real_mode = Vcpu.enter_big_real_mode
    monkeypatch.setattr(
        Vcpu, "enter_big_real_mode", lambda vcpu, base, rip: real_mode(vcpu, 0x100000, rip)
    )
    assert isinstance(live(kvm, Lives(death, 2)), Stopped)
    assert signal.getsignal(signal.SIGUSR1) == handler


def test_slot_that_is_refused_is_named(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "LOG_DIRTY_PAGES", 1 << 7)
    with pytest.raises(KvmError, match=r"KVM_SET_USER_MEMORY_REGION\(slot=0x1, flags=0x80, "):
        live(kvm, Lives("closed", 1))


def test_child_that_is_to_be_killed_ends_with_its_parent(kvm: Kvm) -> None:
    read_end, write_end = os.pipe()
    with HostMapping.shared(PAGE_SIZE_BYTES) as signs:
        child = os.fork()
        if child == 0:
            os.close(write_end)
            lives._run_until_killed(kvm, signs, read_end)
        os.close(read_end)
        while signs.read(0, 1) == b"\0":
            os.sched_yield()
        os.close(write_end)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_an_error_of_ours_in_the_thread_of_a_guest_is_raised(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_and_fail(vcpu: Vcpu) -> None:
        try:
            run(vcpu)
        except KvmError as error:
            raise ZeroDivisionError from error

    run = Vcpu.run
    monkeypatch.setattr(Vcpu, "run", run_and_fail)
    with pytest.raises(ZeroDivisionError):
        live(kvm, Lives("closed-while-running", 1))
