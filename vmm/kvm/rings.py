"""`DirtyRing`: the ring in which the kernel lists the pages that one vCPU wrote."""

from kvm_abi import mman, raw
from kvm_abi.uapi import DIRTY_LOG_PAGE_OFFSET, PAGE_SIZE_BYTES


class DirtyRing:
    """The mapped ring of a vCPU, created by `Vcpu.map_dirty_ring` and closed with the vCPU.

    An entry is dirty until `harvest` returns it; KVM_RESET_DIRTY_RINGS then frees it.

        >>> from vmm import Cap, HostAddress, HostMapping, Kvm, MemFlag, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("movb $1, 0x1800; hlt"))
        ...     vm.enable_cap(Cap.DIRTY_LOG_RING_ACQ_REL, 0x10000)
        ...     hva, log = HostAddress(memory, 0), MemFlag.LOG_DIRTY_PAGES
        ...     vm.set_user_memory_region(3, log, 0x1000, 0x1000, hva)
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     ring = vcpu.map_dirty_ring(0x10000)
        ...     vcpu.run(), (3, 0) in ring.harvest(), vm.reset_dirty_rings() >= 1
        (Hlt(), True, True)
    """

    def __init__(self, vcpu_fd: int, size_bytes: int) -> None:
        """Map the ring of a vCPU's file.

        `size_bytes` is the size with which KVM_CAP_DIRTY_LOG_RING was enabled. Raises `ValueError`
        for one that no ring has, and `OSError`.
        """
        if size_bytes < PAGE_SIZE_BYTES or size_bytes & (size_bytes - 1):
            raise ValueError(f"no ring has {size_bytes:#x} bytes, but a power of two of pages")
        self._size_bytes = size_bytes
        self._address = raw.map_kvm_file(
            "a dirty ring", vcpu_fd, size_bytes, DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE_BYTES
        )
        self._entries = raw.cast("struct kvm_dirty_gfn *", self._address)
        self._count = size_bytes // raw.size_of("struct kvm_dirty_gfn")
        self._next = 0

    @property
    def size_bytes(self) -> int:
        """How large the ring is."""
        return self._size_bytes

    @property
    def closed(self) -> bool:
        """Whether the ring has been closed."""
        return not self._address

    def close(self) -> None:
        """Unmap the ring. Closing twice is fine; the vCPU closes it, too. Raises nothing.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.enable_cap(Cap.DIRTY_LOG_RING_ACQ_REL, 0x10000)
        ...     vm.create_vcpu(0).map_dirty_ring(0x10000).close()
        """
        if self._address:
            self._entries = None
            mman.unmap_memory(self._address, self._size_bytes)
            self._address = 0

    def harvest(self) -> list[tuple[int, int]]:
        """Return (slot, page) of each new entry, in order, and mark it as harvested.

        A slot number holds the as_id in its upper 16 bits; a page counts from the slot's start.
        Raises `ValueError` when the ring is closed.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.enable_cap(Cap.DIRTY_LOG_RING_ACQ_REL, 0x10000)
        ...     vm.create_vcpu(0).map_dirty_ring(0x10000).harvest()
        []
        """
        if self._entries is None:
            raise ValueError("the dirty ring is closed")
        found = raw.harvest(self._entries, self._count, self._next)
        self._next += len(found)
        return found
