"""The host's part in dirty rings: harvest and reset them, also when one is full."""

import os
import threading
from pathlib import Path

from kvm_abi import mman, raw
from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import DIRTY_LOG_PAGE_OFFSET, PAGE_SIZE_BYTES
from vmm.kvm.rings import DirtyRing
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import Vm
from vmm.scenario.history import Refused, RingPages, RingsReset

_OWN_MEMORY = Path("/proc/self/mem")


def shows_memory(vcpu: Vcpu, offset: int) -> bool:
    """Whether a page of a vCPU's file can be mapped and read.

    It is read as a debugger does, since an access of this process would be SIGBUS.
    """
    try:
        address = raw.map_kvm_file("a page", vcpu.fd, PAGE_SIZE_BYTES, offset)
    except KvmError:
        return False
    try:
        with _OWN_MEMORY.open("rb", buffering=0) as memory:
            return len(os.pread(memory.fileno(), 1, address)) == 1
    except OSError:
        return False
    finally:
        mman.unmap_memory(address, PAGE_SIZE_BYTES)


def _page(address: int) -> bytes:
    return bytes(raw.shared_memory(address, PAGE_SIZE_BYTES)[:])


class RingHost:
    """The rings of a VM's vCPUs; there are none until ``enabled`` is called.

    Threads may harvest at the same time, also while one of them resets.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._size_bytes = 0
        self._rings: dict[int, DirtyRing] = {}
        self._found: dict[int, set[tuple[int, int]]] = {}
        self._full: dict[int, int] = {}
        self._harvested = 0
        self._counting = threading.Lock()

    @property
    def exist(self) -> bool:
        """Whether the VM's vCPUs have rings."""
        return bool(self._size_bytes)

    def enabled(self, size_bytes: int) -> None:
        """Note that the VM's vCPUs get rings of this size, from now on."""
        self._size_bytes = size_bytes

    def attach(self, index: int, vcpu: Vcpu) -> None:
        """Map the ring of a new vCPU, if it has one."""
        if self._size_bytes:
            self._rings[index] = vcpu.map_dirty_ring(self._size_bytes)
            if shows_memory(vcpu, DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE_BYTES + self._size_bytes):
                raise WrongAnswerError("mmap", "memory", "the page after a vCPU's dirty ring")
            self._found[index] = set()
            self._full[index] = 0

    def compare(self, vcpu: Vcpu, first_page: int, pages: int, address: int) -> None:
        """Raise `WrongAnswerError` where pages of a vCPU's file are mapped and are not its ring."""
        size = self._size_bytes
        ring = range(DIRTY_LOG_PAGE_OFFSET, DIRTY_LOG_PAGE_OFFSET + size // PAGE_SIZE_BYTES)
        found = range(max(first_page, ring.start), min(first_page + pages, ring.stop))
        if not found:
            return
        whole = raw.map_kvm_file("a dirty ring", vcpu.fd, size, ring.start * PAGE_SIZE_BYTES)
        try:
            for page in found:
                expected = whole + (page - ring.start) * PAGE_SIZE_BYTES
                if _page(address + (page - first_page) * PAGE_SIZE_BYTES) != _page(expected):
                    raise WrongAnswerError("mmap", "another page", f"page {page} of a dirty ring")
        finally:
            mman.unmap_memory(whole, size)

    def has(self, index: int) -> bool:
        """Whether a vCPU has a ring."""
        return index in self._rings

    def make_room(self, index: int) -> bool:
        """Harvest and reset the ring that stopped a vCPU; False if nothing was reset."""
        if index not in self._rings:
            return False
        self._full[index] += 1
        self._collect(index)
        entries = self._vm.reset_dirty_rings()
        self._harvested -= entries
        return entries > 0

    def harvest(self, index: int) -> RingPages:
        """Return what a vCPU's ring has held since the last harvest."""
        if index not in self._rings:
            return RingPages()
        with self._counting:
            entries = self._collect(index)
            outcome = RingPages(
                tuple(sorted(self._found[index])), self._full[index], entries=entries
            )
            self._found[index], self._full[index] = set(), 0
        return outcome

    def reset(self) -> RingsReset | Refused:
        """Issue KVM_RESET_DIRTY_RINGS."""
        try:
            entries = self._vm.reset_dirty_rings()
        except KvmError as error:
            return Refused(error.errno or 0)
        harvested, self._harvested = self._harvested, 0
        return RingsReset(entries, harvested)

    def reset_meanwhile(self) -> RingsReset | Refused:
        """Issue KVM_RESET_DIRTY_RINGS while other threads harvest; one thread at a time."""
        try:
            entries = self._vm.reset_dirty_rings()
        except KvmError as error:
            return Refused(error.errno or 0)
        with self._counting:
            self._harvested -= entries
        return RingsReset(entries)

    def _collect(self, index: int) -> int:
        entries = self._rings[index].harvest()
        self._found[index].update(entries)
        self._harvested += len(entries)
        return len(entries)
