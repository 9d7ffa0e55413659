"""The work, done through the library."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, repeat

from kvm_abi.raw import MOST_INTERRUPTIONS, KvmError
from kvm_abi.uapi import Cap, MemFlag
from vmm.bench import guest
from vmm.bench.setup import (
    CODE_GPA,
    FILL_GPA,
    HOLE_GPA,
    HUGE_PAGE_BYTES,
    OTHER_GPA,
    PAGE_BYTES,
    PAIRS,
    READINGS,
    RING_BYTES,
    TOUCHED_PAGES,
    WORK_GPA,
    Setup,
)
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.regions import Region, Regions
from vmm.kvm.registers import Registers
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import Vm

Round = Callable[[int], int]
"""Does the work this many times and returns nanoseconds."""

_LOG = int(MemFlag.LOG_DIRTY_PAGES)
_clock = time.perf_counter_ns


@contextmanager
def ready(kvm: Kvm, setup: Setup) -> Iterator[Round]:
    """Make the VM of a setup; yield a function that does its work. Raises KvmError."""
    with ExitStack() as stack:
        size_bytes = setup.pages * PAGE_BYTES
        memory = stack.enter_context(_memory(size_bytes, setup.huge))
        code = stack.enter_context(HostMapping.anonymous(PAGE_BYTES))
        code.write(0, guest.code_page())
        vm = stack.enter_context(kvm.create_vm())
        if setup.work == "dirty-ring":
            vm.enable_cap(Cap.DIRTY_LOG_RING_ACQ_REL, RING_BYTES)
        last = kvm.check_extension(Cap.NR_MEMSLOTS) - 1
        vm.set_user_memory_region(last, 0, CODE_GPA, PAGE_BYTES, HostAddress(code, 0))
        vcpus = [vm.create_vcpu(number) for number in range(setup.vcpus)]
        for vcpu in vcpus:
            vcpu.enter_big_real_mode(CODE_GPA, guest.OFFSETS["run"])
            _run_often(vcpu, 1)
        hva, step = HostAddress(memory, 0), size_bytes + PAGE_BYTES
        for slot in range(setup.slots):
            vm.set_user_memory_region(slot, 0, FILL_GPA + slot * step, size_bytes, hva)
        yield _Work(vm, vcpus[0], last - 1, hva, setup).round()


def _memory(size_bytes: int, huge: bool) -> HostMapping:
    if huge:
        return HostMapping.transparent_huge(-(-size_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES)
    return HostMapping.anonymous(size_bytes)


def _reading_ns() -> int:
    """Return the least that reading the clock takes: a time between two readings has it once."""
    least = _clock()
    for _ in range(READINGS):
        begun = _clock()
        ended = _clock()
        least = min(least, ended - begun)
    return least


def _run_often(vcpu: Vcpu, times: int) -> None:
    """Run a vCPU to so many exits. Raises KvmError.

    EINTR is none of them: KVM_RUN has it when somebody stops this process and lets it continue.
    """
    run, interruptions = vcpu.run, 0
    wanted: Iterator[None] = repeat(None, times)
    while True:
        try:
            for _ in wanted:
                run()
        except KvmError as error:
            interruptions += 1
            if error.errno != errno.EINTR or interruptions > MOST_INTERRUPTIONS:
                raise
            wanted = chain((None,), wanted)
        else:
            return


class _Work:
    """The kinds of work on one slot of a VM."""

    def __init__(self, vm: Vm, vcpu: Vcpu, slot: int, hva: HostAddress, setup: Setup) -> None:
        self._vm, self._vcpu, self._slot, self._hva, self._setup = vm, vcpu, slot, hva, setup
        self._size_bytes = setup.pages * PAGE_BYTES

    def round(self) -> Round:
        """Prepare the work of the setup, and return it."""
        match self._setup.work:
            case "create":
                return lambda times: self._create_and_delete(times)[0]
            case "delete":
                return lambda times: self._create_and_delete(times)[1]
            case "both":
                return self._both
            case "pairs":
                return self._pairs
            case "move":
                self._region(0)
                return self._move
            case "flags":
                self._region(0)
                return self._flags
            case "nop":
                self._region(0)
                return self._nop
            case "run":
                self._start("run")
                return self._run
            case "mmio":
                self._start("mmio")
                return self._run
            case "dirty-log":
                self._region(_LOG)
                return self._dirty_log
            case "dirty-ring":
                self._region(_LOG)
                return self._dirty_ring

    def _region(self, flags: int, gpa: int = WORK_GPA) -> None:
        self._vm.set_user_memory_region(self._slot, flags, gpa, self._size_bytes, self._hva)

    def _create_and_delete(self, times: int) -> tuple[int, int]:
        change = self._vm.set_user_memory_region
        slot, size_bytes, hva = self._slot, self._size_bytes, self._hva
        creating = deleting = 0
        for _ in range(times):
            begun = _clock()
            change(slot, 0, WORK_GPA, size_bytes, hva)
            created = _clock()
            change(slot, 0, 0, 0, 0)
            deleted = _clock()
            creating += created - begun
            deleting += deleted - created
        reading = times * _reading_ns()
        return creating - reading, deleting - reading

    def _both(self, times: int) -> int:
        change = self._vm.set_user_memory_region
        slot, gpa, size_bytes, hva = self._slot, WORK_GPA, self._size_bytes, self._hva
        begun = _clock()
        for _ in range(times):
            change(slot, 0, gpa, size_bytes, hva)
            change(slot, 0, 0, 0, 0)
        return _clock() - begun

    def _pairs(self, times: int) -> int:
        change = self._vm.set_user_memory_regions
        there = Region(self._slot, 0, WORK_GPA, self._size_bytes, self._hva)
        pair = [there, Region(self._slot)]
        pairs, rest = Regions(pair * PAIRS), Regions(pair * (times % PAIRS))
        begun = _clock()
        for _ in range(times // PAIRS):
            change(pairs)
        change(rest)
        return _clock() - begun

    def _move(self, times: int) -> int:
        begun = _clock()
        for _ in range(times // 2):
            self._region(0, OTHER_GPA)
            self._region(0)
        return _clock() - begun

    def _flags(self, times: int) -> int:
        begun = _clock()
        for _ in range(times // 2):
            self._region(_LOG)
            self._region(0)
        return _clock() - begun

    def _nop(self, times: int) -> int:
        begun = _clock()
        for _ in range(times):
            self._region(0)
        return _clock() - begun

    def _run(self, times: int) -> int:
        begun = _clock()
        _run_often(self._vcpu, times)
        return _clock() - begun

    def _start(self, loop: str, gpa: int = HOLE_GPA, count: int = 0) -> None:
        self._vcpu.set_regs(Registers(rbx=gpa, rcx=count, rip=guest.OFFSETS[loop]))

    def _write_pages(self) -> None:
        """Let the guest write the first pages of the slot."""
        self._start("write", WORK_GPA, min(self._setup.pages, TOUCHED_PAGES))
        _run_often(self._vcpu, 1)

    def _dirty_log(self, times: int) -> int:
        spent = 0
        for _ in range(times):
            self._write_pages()
            begun = _clock()
            self._vm.get_dirty_log(self._slot, self._setup.pages)
            spent += _clock() - begun
        return spent

    def _dirty_ring(self, times: int) -> int:
        ring = self._vcpu.map_dirty_ring(RING_BYTES)
        spent = 0
        for _ in range(times):
            self._write_pages()
            begun = _clock()
            ring.harvest()
            self._vm.reset_dirty_rings()
            spent += _clock() - begun
        return spent
