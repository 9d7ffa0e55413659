"""`Vcpu`: runs a guest until an exit."""

import errno
import os

from kvm_abi import mman, raw
from kvm_abi.raw import CData, KvmError, MmioLoop, PassedMmio, WrongAnswerError
from kvm_abi.uapi import PAGE_SIZE_BYTES, ExitReason, Ioctl
from vmm.kvm.exits import VcpuExit, decode
from vmm.kvm.rings import DirtyRing
from vmm.kvm.vcpustate import VcpuState

_COALESCED_ENTRIES = (PAGE_SIZE_BYTES - 8) // raw.size_of("struct kvm_coalesced_mmio")
_MOST_EXITS_OF_AN_INSTRUCTION = 64
_PORT, _MMIO = int(ExitReason.IO), int(ExitReason.MMIO)

_KNOWN_EXITS: dict[int, VcpuExit] = {}
"""Frequent exits by their numbers: see `kvm_abi.raw.issue_run`. Looking one up is quicker than
decoding it, most of all after the guest has pushed everything else out of the caches."""

_MOST_KNOWN_EXITS = 1024


class Vcpu(VcpuState):
    """A vCPU, created by `Vm.create_vcpu`; closed by `close`, or with its VM.

    Only one thread may use it at a time, except for `request_immediate_exit`. A refusal by the
    kernel raises `KvmError`; use after `close` raises `ValueError`.

        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> code = assemble("in $0x60, %al; hlt")
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, code)
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     vcpu.run(), vcpu.run(), vcpu.get_regs().rip
        (Io(port=0x60, data=b'\\x00', is_write=False, size_bytes=1, count=1), Hlt(), 3)
    """

    def __init__(self, fd: int, mmap_size_bytes: int) -> None:
        """Own the vCPU's descriptor, and map the memory that it shares with the kernel."""
        try:
            address = raw.map_kvm_file("a vCPU", fd, mmap_size_bytes)
        except BaseException:
            os.close(fd)
            raise
        super().__init__(fd, address, mmap_size_bytes)
        self._ring: DirtyRing | None = None
        self._mmio_loop = MmioLoop(fd)

    def close(self) -> None:
        """Unmap the shared memory and close the descriptor. Closing twice is fine.

        Raises `KvmError` if the kernel refuses that, as none may; it is closed all the same.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.close()
        """
        if self._fd < 0:
            return
        self._run = self._memory = None
        self._exit_regs = self._next_sregs = None
        if self._ring is not None:
            self._ring.close()
        mman.unmap_memory(self._address, self._mmap_size_bytes)
        fd, self._fd = self._fd, -1
        raw.close_kvm_file("a vCPU", fd)

    def map_dirty_ring(self, size_bytes: int) -> DirtyRing:
        """Map the vCPU's dirty ring, which is closed with the vCPU; it is mapped once.

        `size_bytes` is the size with which the VM's KVM_CAP_DIRTY_LOG_RING was enabled before the
        vCPU was created: without that, touching the mapping is SIGBUS. Raises `KvmError`, and
        `ValueError` for a size that no ring has, or another than it is mapped with, and after
        `DirtyRing.close`: where the kernel is in a ring is known to the mapping alone.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.enable_cap(Cap.DIRTY_LOG_RING_ACQ_REL, 0x10000)
        ...     vm.create_vcpu(0).map_dirty_ring(0x10000).harvest()
        []
        """
        if self._ring is None:
            self._ring = DirtyRing(self.fd, size_bytes)
        if self._ring.closed:
            raise ValueError("the dirty ring is closed")
        if self._ring.size_bytes != size_bytes:
            mapped = self._ring.size_bytes
            raise ValueError(f"the ring is mapped with {mapped:#x} bytes, not {size_bytes:#x}")
        return self._ring

    def coalesced_mmio(self, page_offset: int) -> list[tuple[int, bytes]]:
        r"""Remove the coalesced writes from the VM's ring, and return (gpa, data) in order.

        `page_offset` is the answer of KVM_CAP_COALESCED_MMIO, in pages. Raises `ValueError`
        if the vCPU is closed, or the offset lies outside of its shared pages, and
        `WrongAnswerError` if the ring ends where it has no entry, or has a write to a port: see
        `coalesced_writes`.

        >>> from vmm import Cap, HostAddress, HostMapping, Kvm, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("movb $7, 0x2000; hlt"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vm.register_coalesced_mmio(0x2000, 0x1000)
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     vcpu.run(), vcpu.coalesced_mmio(vm.check_extension(Cap.COALESCED_MMIO))
        (Hlt(), [(8192, b'\x07')])
        """
        writes = self.coalesced_writes(page_offset)
        for _, _, pio in writes:
            if pio:
                raise WrongAnswerError("KVM_RUN", f"a coalesced write with pio={pio}")
        return [(gpa, data) for gpa, data, _ in writes]

    def coalesced_writes(self, page_offset: int) -> list[tuple[int, bytes, int]]:
        r"""Do the same where ports are coalesced, too: return (gpa or port, data, pio) in order.

        Raises `ValueError` and `WrongAnswerError` as `coalesced_mmio` does.

        >>> from vmm import Cap, HostAddress, HostMapping, Kvm, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("movb $7, 0x2000; hlt"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vm.register_coalesced_mmio(0x2000, 0x1000)
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     vcpu.run(), vcpu.coalesced_writes(vm.check_extension(Cap.COALESCED_MMIO))
        (Hlt(), [(8192, b'\x07', 0)])
        """
        ends = self._coalesced_ends(page_offset)
        entries = raw.cast("struct kvm_coalesced_mmio *", raw.address_of(ends) + 8)
        first, last = int(ends[0]), int(ends[1])
        if first != last and max(first, last) >= _COALESCED_ENTRIES:
            ring = f"a ring of {_COALESCED_ENTRIES} writes from {first} to {last}"
            raise WrongAnswerError("KVM_RUN", ring)
        found = []
        while ends[0] != last:
            entry = entries[ends[0]]
            data = raw.bytes_of(raw.cast("uint8_t *", raw.address_of(entry.data)), 8)
            found.append((int(entry.phys_addr), data[: entry.len], int(entry.pio)))
            ends[0] = (ends[0] + 1) % _COALESCED_ENTRIES
        return found

    def set_coalesced_ring(self, page_offset: int, index: int) -> None:
        """Say that the VM's ring of coalesced writes is empty, and goes on at an index.

        The kernel keeps no write while the index is beyond those of the ring. Raises `ValueError`
        as `coalesced_writes` does.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.create_vcpu(0).set_coalesced_ring(vm.check_extension(Cap.COALESCED_MMIO), 169)
        """
        ends = self._coalesced_ends(page_offset)
        ends[0] = ends[1] = index

    def _coalesced_ends(self, page_offset: int) -> CData:
        """Return a pointer to the ring's first and last. Raises `ValueError`."""
        if self._run is None:
            raise ValueError("the vCPU is closed")
        # 0 is the answer of a kernel without the ring; what is shared begins with `kvm_run`.
        if page_offset not in range(1, self._mmap_size_bytes // PAGE_SIZE_BYTES):
            raise ValueError(f"the vCPU shares no ring at page {page_offset}")
        return raw.cast("uint32_t *", self._address + page_offset * PAGE_SIZE_BYTES)

    def run(self) -> VcpuExit:
        r"""Let the guest run until an exit, and return it. Other Python threads keep running.

        Raises `KvmError`: EFAULT if the guest accessed memory that the host does not have
        (`kvm_run` may then hold a memory fault), EINTR if a signal or `request_immediate_exit`
        stopped it; and `ValueError` when the vCPU is closed.

        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("mov $3, %al; out %al, $0x10"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     vcpu.run()
        Io(port=0x10, data=b'\x03', is_write=True, size_bytes=1, count=1)
        """
        number = raw.issue_run(self._fd, self._address)
        # After a guest every step of Python is slow: the usual way has as few of them as possible.
        try:
            return _KNOWN_EXITS[number]
        except KeyError:
            pass
        return self._exit_of(number)

    def _exit_of(self, number: int) -> VcpuExit:
        """Return the exit in `kvm_run` for an answer to KVM_RUN, and keep it if it has a number."""
        if number == raw.CLOSED:
            _ = self.fd  # Raises an error of its own if the vCPU is closed.
        if number and number < raw.EXIT_CODES:
            raise raw.run_error(number)
        leaving = self.last_exit()
        if number and len(_KNOWN_EXITS) < _MOST_KNOWN_EXITS:
            _KNOWN_EXITS[number] = leaving
        return leaving

    def run_past_mmio(
        self, answer: int, passed: list[PassedMmio], end_port: int, most: int
    ) -> VcpuExit | None:
        r"""Let the guest run until an exit that is not MMIO; return it, or None at `end_port`.

        MMIO reads are answered with bytes of `answer`. Each MMIO exit is appended to `passed`, as
        (RIP, gpa, data, is_write), even if the method raises. Once there are `most` of them, an
        MMIO exit is returned, too. Raises what `run` does.

        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("mov 0x2000, %al; mov %al, 0x2001; out %al, $1"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     passed = []
        ...     vcpu.run_past_mmio(0xff, passed, end_port=1, most=10)
        ...     for rip, gpa, data, is_write in passed:
        ...         print(hex(gpa), data.hex(), "written" if is_write else "read")
        0x2000 ff read
        0x2001 ff written
        """
        run = self.kvm_run
        if self._exit_regs is None:
            return self._run_past_each(answer, passed, end_port, most)
        while True:
            is_end = self._mmio_loop.run(run, answer, end_port, passed)
            if is_end:
                return None
            if is_end is False or len(passed) >= most:
                return self.last_exit()

    def _run_past_each(
        self, answer: int, passed: list[PassedMmio], end_port: int, most: int
    ) -> VcpuExit | None:
        """Do the same for a vCPU that does not share registers: ask for RIP at each exit."""
        run = self.kvm_run
        while True:
            is_end = self._mmio_loop.run(run, answer, end_port, passed, 1)
            if is_end is not None:
                return None if is_end else self.last_exit()
            passed[-1] = (self.get_rip(), *passed[-1][1:])
            if len(passed) >= most:
                return self.last_exit()

    def last_exit(self) -> VcpuExit:
        """Return the exit in `kvm_run`: after an EFAULT it may be a memory fault.

        Raises `ValueError` when the vCPU is closed.

        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("hlt"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     vcpu.run() == vcpu.last_exit()
        True
        """
        run, memory = self.kvm_run, self._memory
        assert memory is not None
        return decode(run, memory)

    def pre_fault_memory(self, gpa: int, size_bytes: int, flags: int = 0) -> tuple[int, int]:
        """Issue KVM_PRE_FAULT_MEMORY; return gpa and size in bytes of the part not yet mapped.

        Raises `KvmError`, and then nothing was mapped: ENOENT if the first page has no slot. Raises
        `WrongAnswerError` if the range has changed even so.

        >>> from vmm import Cap, HostAddress, HostMapping, Kvm
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     if vm.check_extension(Cap.PRE_FAULT_MEMORY):
        ...         assert vm.create_vcpu(0).pre_fault_memory(0x1000, 0x1000) == (0x2000, 0)
        """
        wanted = raw.new("struct kvm_pre_fault_memory *", (gpa, size_bytes, flags))
        try:
            raw.ioctl(self.fd, Ioctl.PRE_FAULT_MEMORY, wanted)
        except KvmError as error:
            is_changed = (wanted.gpa, wanted.size) != (gpa, size_bytes)
            raise raw.refusal(error, "the range", is_changed) from None
        return int(wanted.gpa), int(wanted.size)

    def request_immediate_exit(self, wanted: bool = True) -> None:
        """Let KVM_RUN return with EINTR before it enters the guest, until called with False.

        To stop a running guest, also send its thread a signal. Raises `ValueError` when the vCPU is
        closed.

        >>> from vmm import Kvm, KvmError
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.request_immediate_exit()
        ...     try:
        ...         vcpu.run()
        ...     except KvmError as error:
        ...         print(error)
        KVM_RUN(): EINTR Interrupted system call
        """
        self.kvm_run.immediate_exit = wanted

    def finish_exit(self) -> None:
        """Complete a pending MMIO or port access without running further.

        Further exits of the same instruction are completed, too: their reads get the data left by
        the exit before. Raises `KvmError`.

        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("mov 0x2000, %al; hlt"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     _ = vcpu.run()
        ...     vcpu.complete_mmio_read(b"A")
        ...     vcpu.finish_exit()
        ...     vcpu.get_regs().rax & 0xff
        65
        """
        run = self.kvm_run
        wanted = run.immediate_exit
        run.immediate_exit = 1
        try:
            for _ in range(_MOST_EXITS_OF_AN_INSTRUCTION):
                raw.ioctl(self._fd, Ioctl.RUN)
        except KvmError as error:
            if error.errno != errno.EINTR:
                raise
        finally:
            run.immediate_exit = wanted

    def complete_port_read(self, data: bytes) -> None:
        r"""Set the data that a pending read of a port returns. It takes effect at the next `run`.

        Raises `ValueError` unless the last exit is such a read, and `data` as long as the exit's.

        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("in $0x60, %al; hlt"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     reason = vcpu.run()
        ...     vcpu.complete_port_read(b"A")
        ...     reason.port, vcpu.run(), vcpu.get_regs().rax & 0xff
        (96, Hlt(), 65)
        """
        run, memory = self.kvm_run, self._memory
        assert memory is not None
        if run.exit_reason != _PORT or run.io.direction:
            raise ValueError("no read of a port is pending")
        size_bytes = run.io.size * run.io.count
        if len(data) != size_bytes:
            raise ValueError(f"{len(data)} bytes for a port read of {size_bytes}")
        memory[run.io.data_offset : run.io.data_offset + size_bytes] = data

    def complete_mmio_read(self, data: bytes) -> None:
        r"""Set the data that a pending MMIO read returns. It takes effect at the next `run`.

        Raises `ValueError` unless the last exit is such a read, and `data` as long as the access.

        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("mov 0x2000, %al; hlt"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     reason = vcpu.run()
        ...     vcpu.complete_mmio_read(b"A")
        ...     reason, vcpu.run(), vcpu.get_regs().rax & 0xff
        (Mmio(gpa=0x2000, data=b'\x00', is_write=False), Hlt(), 65)
        """
        run = self.kvm_run
        mmio = run.mmio
        if run.exit_reason != _MMIO or mmio.is_write:
            raise ValueError("no MMIO read is pending")
        if len(data) != mmio.len:
            raise ValueError(f"{len(data)} bytes for an MMIO read of {mmio.len}")
        raw.copy_to(mmio.data, data)
