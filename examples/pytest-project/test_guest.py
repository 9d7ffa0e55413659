"""Custom guests in custom VMs."""

import pytest

from vmm import HostAddress, KvmError, MemFlag, assemble, exits

CODE_GPA = 0x1000


@pytest.fixture
def started(guest_memory, vcpu):
    """A function that lets the vCPU start at some code."""

    def start(source):
        guest_memory(CODE_GPA, content=assemble(source))
        vcpu.enter_big_real_mode(base=CODE_GPA, rip=0)
        return vcpu

    return start


def test_a_gpa_without_a_slot_is_mmio(started, kernel_health):
    vcpu = started("movb $7, 0x5000; hlt")
    assert vcpu.run() == exits.Mmio(gpa=0x5000, data=b"\x07", is_write=True)
    assert vcpu.run() == exits.Hlt()


def test_a_write_reaches_the_memory_of_its_slot(started, guest_memory):
    memory = guest_memory(0x5000, 0x2000)
    assert started("movl $0x11223344, %ss:0x5ffc - 0x1000; hlt").run() == exits.Hlt()
    assert memory.read(0xFFC, 4) == bytes.fromhex("44332211")


def test_slots_do_not_overlap(vm, guest_memory):
    memory = guest_memory(0x10000, 0x3000)
    with pytest.raises(KvmError, match="EEXIST"):
        vm.set_user_memory_region(7, 0, 0x12000, 0x1000, HostAddress(memory, 0))


@pytest.mark.kvm_capability("READONLY_MEM")
def test_a_write_to_a_readonly_slot_is_mmio(started, guest_memory):
    memory = guest_memory(0x5000, flags=MemFlag.READONLY, content=b"keep")
    assert isinstance(started("movb $1, 0x5000; hlt").run(), exits.Mmio)
    assert memory.read(0, 4) == b"keep"


@pytest.mark.kvm_capability("NR_MEMSLOTS", at_least=1_000_000)
def test_what_no_kernel_has_is_skipped():
    raise AssertionError("never runs")
