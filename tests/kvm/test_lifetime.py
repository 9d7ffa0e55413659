import gc
from collections import Counter

import psutil

from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm

PAGE = 4096
VMS = 300
VMS_PER_VCPU = 10
ANONYMOUS_BYTES = 64 * PAGE  # Hundreds of them stand out beside Python's own arenas.
ARENAS_BYTES = 16 << 20


def live_a_life(kvm: Kvm, with_vcpu: bool) -> None:
    with (
        HostMapping.memfd(2 * PAGE) as memory,
        HostMapping.anonymous(ANONYMOUS_BYTES) as other,
        kvm.create_vm() as vm,
    ):
        vm.set_user_memory_region(0, 0, 0x10000, PAGE, HostAddress(memory, 0))
        vm.set_user_memory_region(1, 0, 0x40000, PAGE, HostAddress(other, 0))
        vm.set_user_memory_region(1, 0, 0, 0, 0)
        if with_vcpu:
            memory.write(0, b"\xf4")
            vcpu = vm.create_vcpu(0)
            vcpu.enter_big_real_mode(0x10000, 0)
            vcpu.run()


def holdings() -> tuple[int, Counter[str]]:
    """Return how many files are open, and how often each thing is mapped.

    Private memory without a name is left out: Python's own allocator keeps it in arenas.
    """
    gc.collect()
    process = psutil.Process()
    maps = Counter(region.path for region in process.memory_maps(grouped=False))
    del maps["[anon]"], maps["[heap]"]
    return process.num_fds(), maps


def test_hundreds_of_vms_leave_nothing_behind(kvm: Kvm) -> None:
    live_a_life(kvm, with_vcpu=True)
    before = holdings()
    virtual_bytes = psutil.Process().memory_info().vms
    for number in range(VMS):
        live_a_life(kvm, with_vcpu=number % VMS_PER_VCPU == 0)
    assert holdings() == before
    assert psutil.Process().memory_info().vms - virtual_bytes < ARENAS_BYTES
