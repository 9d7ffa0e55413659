"""`Vcpu`: registers, and running until something happens."""

import errno
import os

from kvm_abi import raw
from kvm_abi.raw import Buffer, CData, KvmError, PassedMmio, PassedRoom, run_vcpu
from kvm_abi.uapi import PAGE_SIZE_BYTES, SYNC_X86_REGS, SYNC_X86_SREGS, Ioctl, VcpuEventFlag
from vmm.kvm.closing import Closing
from vmm.kvm.dirtyring import DirtyRing
from vmm.kvm.exits import VcpuExit, decode
from vmm.kvm.registers import (
    Registers,
    put_registers,
    raw_registers,
    read_registers,
    registers_of,
    set_big_real_mode,
    set_code_base,
    set_descriptor_tables,
    set_flat_stack,
    set_long_mode,
)

_COALESCED_ENTRIES = (PAGE_SIZE_BYTES - 8) // raw.size_of("struct kvm_coalesced_mmio")
_REGS_BYTES = raw.size_of("struct kvm_regs")
_MOST_EXITS_OF_AN_INSTRUCTION = 64

_Mode = tuple[str | int | tuple[int, int] | None, ...]
"""Which mode the special registers were set to, and where."""


class Vcpu(Closing):
    """A vCPU of a VM, made by `Vm.create_vcpu`; closed by hand, or with its VM.

    One thread uses it at a time, but for `request_immediate_exit`. What the kernel refuses
    raises `KvmError`; using it after `close` raises `ValueError`.

        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> code = assemble("in $0x60, %al; hlt")
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, code)
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     vcpu.run(), vcpu.run(), vcpu.get_regs().rip
        (Io(port=96, data=b'\\x00', is_write=False, size_bytes=1, count=1), Hlt(), 3)
    """

    def __init__(self, fd: int, mmap_size_bytes: int) -> None:
        """Own the vCPU's file, and map the memory that it shares with the kernel."""
        self._fd = fd
        self._mmap_size_bytes = mmap_size_bytes
        try:
            self._address = raw.map_kvm_file("a vCPU", fd, mmap_size_bytes)
        except BaseException:
            os.close(fd)
            raise
        self._run: CData | None = raw.cast("struct kvm_run *", self._address)
        self._memory: Buffer | None = raw.shared_memory(self._address, mmap_size_bytes)
        self._ring: DirtyRing | None = None
        self._regs = raw.new("struct kvm_regs *")
        self._mode_sregs: tuple[CData, CData] | None = None
        self._exit_regs: CData | None = None
        self._next_sregs: CData | None = None
        self._shared_at = 0
        self._mode: _Mode | None = None
        self._passed = PassedRoom()

    @property
    def fd(self) -> int:
        """The vCPU's file. Raises `ValueError` when the vCPU is closed."""
        if self._fd < 0:
            raise ValueError("the vCPU is closed")
        return self._fd

    @property
    def kvm_run(self) -> CData:
        """The `struct kvm_run *` shared with the kernel; not to be kept beyond `close`."""
        if self._run is None:
            raise ValueError("the vCPU is closed")
        return self._run

    def close(self) -> None:
        """Unmap the shared memory and close the file. Closing twice is fine."""
        if self._fd < 0:
            return
        self._run = self._memory = None
        self._exit_regs = self._next_sregs = None
        if self._ring is not None:
            self._ring.close()
        raw.unmap_memory(self._address, self._mmap_size_bytes)
        os.close(self._fd)
        self._fd = -1

    def map_dirty_ring(self, size_bytes: int) -> DirtyRing:
        """Map the vCPU's dirty ring, which is closed with it.

        `size_bytes` is what the VM's KVM_CAP_DIRTY_LOG_RING was enabled with before the vCPU was
        made: without it the mapping has no memory, and touching it is SIGBUS.
        """
        if self._ring is None:
            self._ring = DirtyRing(self.fd, size_bytes)
        return self._ring

    def coalesced_mmio(self, page_offset: int) -> list[tuple[int, bytes]]:
        """Take (gpa, data) of the writes that the kernel has kept for the VM, in order.

        `page_offset` is the answer of KVM_CAP_COALESCED_MMIO.
        """
        address = self._address + page_offset * PAGE_SIZE_BYTES
        if self._run is None or (page_offset + 1) * PAGE_SIZE_BYTES > self._mmap_size_bytes:
            raise ValueError("the vCPU is closed, or shares no ring")
        ends = raw.cast("uint32_t *", address)
        entries = raw.cast("struct kvm_coalesced_mmio *", address + 8)
        found = []
        while ends[0] != ends[1]:
            entry = entries[ends[0]]
            data = raw.bytes_of(raw.cast("uint8_t *", raw.address_of(entry.data)), 8)
            found.append((int(entry.phys_addr), data[: entry.len]))
            ends[0] = (ends[0] + 1) % _COALESCED_ENTRIES
        return found

    def run(self) -> VcpuExit:
        """Let the guest run until an exit, and return it. Other Python threads go on.

        Raises `KvmError`: EFAULT where the guest reached memory that the host cannot give
        (`kvm_run` may hold a memory fault then), EINTR when a signal or
        `request_immediate_exit` stopped it.
        """
        memory = self._memory
        if memory is None:
            raise ValueError("the vCPU is closed")
        run_vcpu(self._fd)
        return decode(self._run, memory)

    def run_past_mmio(
        self, answer: int, passed: list[PassedMmio], end_port: int, most: int
    ) -> VcpuExit | None:
        """Let the guest run until an exit that is not MMIO; return it, or None at `end_port`.

        Its reads are answered with bytes of `answer`. What it passed is appended to `passed`, also
        where this raises what `run` does. From `most` of that on an MMIO exit is returned, too.
        """
        run = self.kvm_run
        if self._exit_regs is None:
            return self._run_past_each(answer, passed, end_port, most)
        while True:
            is_end = raw.run_past_mmio(self._fd, run, answer, end_port, passed, self._passed)
            if is_end:
                return None
            if is_end is False or len(passed) >= most:
                return self.last_exit()

    def _run_past_each(
        self, answer: int, passed: list[PassedMmio], end_port: int, most: int
    ) -> VcpuExit | None:
        """Do the same for a vCPU that is to be asked for RIP at each exit."""
        run = self.kvm_run
        while True:
            is_end = raw.run_past_mmio(self._fd, run, answer, end_port, passed, self._passed, 1)
            if is_end is not None:
                return None if is_end else self.last_exit()
            passed[-1] = (self.get_rip(), *passed[-1][1:])
            if len(passed) >= most:
                return self.last_exit()

    def last_exit(self) -> VcpuExit:
        """Return what `kvm_run` says: after an EFAULT that may be a memory fault."""
        run, memory = self.kvm_run, self._memory
        assert memory is not None
        return decode(run, memory)

    def pre_fault_memory(self, gpa: int, size_bytes: int, flags: int = 0) -> tuple[int, int]:
        """Map guest memory ahead, and return the gpa and the size of what is left of it.

        Raises `KvmError`, and then nothing was mapped.
        """
        wanted = raw.new("struct kvm_pre_fault_memory *", (gpa, size_bytes, flags))
        raw.ioctl(self.fd, Ioctl.PRE_FAULT_MEMORY, wanted)
        return int(wanted.gpa), int(wanted.size)

    def request_immediate_exit(self, wanted: bool = True) -> None:
        """Let KVM_RUN return with EINTR before it enters the guest, until taken back.

        To stop a guest that runs already, another thread then sends its thread a signal.
        """
        self.kvm_run.immediate_exit = wanted

    def finish_exit(self) -> None:
        """Complete a pending MMIO or port access without running on.

        What else the same instruction accesses outside memory is completed, too: reads get what
        the exit before left.
        """
        run = self.kvm_run
        run.immediate_exit = 1
        try:
            for _ in range(_MOST_EXITS_OF_AN_INSTRUCTION):
                raw.ioctl(self._fd, Ioctl.RUN)
        except KvmError as error:
            if error.errno != errno.EINTR:
                raise
        finally:
            run.immediate_exit = 0

    def complete_mmio_read(self, data: bytes) -> None:
        """Give what a pending MMIO read returns. It takes effect at the next `run`.

        Raises `ValueError` unless `data` has the length of the exit's.
        """
        mmio = self.kvm_run.mmio
        if len(data) != mmio.len:
            raise ValueError(f"{len(data)} bytes for an MMIO read of {mmio.len}")
        raw.copy_to(mmio.data, data)

    def get_regs(self) -> Registers:
        """Return the general registers."""
        raw.ioctl(self.fd, Ioctl.GET_REGS, self._regs)
        return registers_of(self._regs)

    def set_regs(self, registers: Registers) -> None:
        """Set all general registers."""
        raw.ioctl(self.fd, Ioctl.SET_REGS, raw_registers(registers))

    def get_rip(self) -> int:
        """Return RIP alone: quicker than all registers."""
        raw.ioctl(self.fd, Ioctl.GET_REGS, self._regs)
        return int(self._regs.rip)

    def share_registers(self) -> None:
        """Let every exit leave the general registers in `kvm_run`; needs KVM_CAP_SYNC_REGS."""
        run = self.kvm_run
        run.kvm_valid_regs = SYNC_X86_REGS
        address = raw.address_of(run.s.padding)  # A struct kvm_sync_regs.
        self._exit_regs = raw.cast("struct kvm_regs *", address)
        self._next_sregs = raw.cast("struct kvm_sregs *", address + _REGS_BYTES)
        self._shared_at = address - self._address

    def exit_rip(self) -> int:
        """Return RIP as it was at the exit that `run` has returned: without a system call."""
        return self.get_rip() if self._exit_regs is None else int(self._exit_regs.rip)

    def exit_registers(self) -> Registers:
        """Return the general registers as they were at the exit that `run` has returned.

        Where they are shared this takes no system call.
        """
        if self._exit_regs is None or self._memory is None:
            return self.get_regs()
        return read_registers(self._memory, self._shared_at)

    def set_rip(self, rip: int) -> None:
        """Change RIP alone."""
        regs = self._regs
        raw.ioctl(self.fd, Ioctl.GET_REGS, regs)
        regs.rip = rip
        raw.ioctl(self.fd, Ioctl.SET_REGS, regs)

    def get_sregs(self) -> CData:
        """Return a copy of the special registers, a `struct kvm_sregs *`."""
        sregs = raw.new("struct kvm_sregs *")
        raw.ioctl(self.fd, Ioctl.GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: CData) -> None:
        """Set all special registers from a `struct kvm_sregs *`."""
        self._mode = None
        raw.ioctl(self.fd, Ioctl.SET_SREGS, sregs)

    def enter_big_real_mode(self, base: int, rip: int, *, at_run: bool = False) -> None:
        """Set up real mode with code and stack at `base`, and flat data segments.

        `base` is a gpa below 4 GiB, `rip` an offset from it. CS and SS have the limit of real
        mode; the other segments begin at 0 and reach all of the first 4 GiB. General
        registers become 0.

        This and the other modes are set up with KVM_SET_SREGS and KVM_SET_REGS. With `at_run` that
        is left to the next KVM_RUN, without a system call, where registers are shared: for a guest
        that comes after one which has left the special registers alone.
        """
        mode, registers = ("real", base), Registers(rip=rip)
        if at_run and self._goes_on(mode, registers):
            return
        real_mode = self._modes()[0]
        set_code_base(real_mode, base)
        self._enter(mode, real_mode, registers, at_run)

    def enter_flat_real_mode(
        self,
        base: int,
        registers: Registers,
        table: tuple[int, int] | None = None,
        *,
        at_run: bool = False,
    ) -> None:
        """Set up big real mode with code at `base`, and a stack segment that is flat, too.

        The stack pointer has 32 bits and is a gpa. `table` is base and limit of both descriptor
        tables.
        """
        mode = ("flat", base, table)
        if at_run and self._goes_on(mode, registers):
            return
        real_mode = raw.new("struct kvm_sregs *", self._modes()[0][0])
        set_code_base(real_mode, base)
        set_flat_stack(real_mode)
        if table is not None:
            set_descriptor_tables(real_mode, *table)
        self._enter(mode, real_mode, registers, at_run)

    def enter_long_mode(
        self,
        cr3: int,
        registers: Registers,
        table: tuple[int, int] | None = None,
        *,
        at_run: bool = False,
    ) -> None:
        """Set up 64-bit mode with page tables at the gpa `cr3`, flat segments, and no IDT.

        Whatever faults is a triple fault: a `Shutdown`. What CR3 and page-table entries may
        hold depends on the CPUID of the vCPU. `table` is base and limit of both descriptor tables.
        """
        mode = ("long", cr3, table)
        if at_run and self._goes_on(mode, registers):
            return
        long_mode = self._modes()[1]
        if table is not None:
            long_mode = raw.new("struct kvm_sregs *", long_mode[0])
            set_descriptor_tables(long_mode, *table)
        long_mode.cr3 = cr3
        self._enter(mode, long_mode, registers, at_run)

    def _enter(self, mode: _Mode, sregs: CData, registers: Registers, at_run: bool) -> None:
        self._mode = mode
        memory, next_sregs = self._memory, self._next_sregs
        if at_run and memory is not None and next_sregs is not None:
            next_sregs[0] = sregs[0]
            put_registers(memory, self._shared_at, registers)
            self.kvm_run.kvm_dirty_regs = SYNC_X86_REGS | SYNC_X86_SREGS
        else:
            raw.ioctl(self.fd, Ioctl.SET_SREGS, sregs)
            self.set_regs(registers)

    def _goes_on(self, mode: _Mode, registers: Registers) -> bool:
        """Leave general registers to the next KVM_RUN, if the vCPU is in the mode already."""
        memory = self._memory
        if mode != self._mode or memory is None or self._next_sregs is None:
            return False
        put_registers(memory, self._shared_at, registers)
        self.kvm_run.kvm_dirty_regs |= SYNC_X86_REGS
        return True

    def set_msr(self, index: int, data: int) -> int:
        """Issue KVM_SET_MSRS for one MSR, and return how many were set: 1, or 0 if it is refused.

        Raises `KvmError`.
        """
        msrs = raw.new("struct kvm_msrs *", {"nmsrs": 1, "entries": 1})
        msrs.entries[0].index, msrs.entries[0].data = index, data
        return raw.ioctl(self.fd, Ioctl.SET_MSRS, msrs)

    def tell_of_pause(self) -> None:
        """Issue KVM_KVMCLOCK_CTRL: the guest's clock says at the next `run` that it was paused.

        Raises `KvmError`, EINVAL where the guest has no such clock.
        """
        raw.ioctl(self.fd, Ioctl.KVMCLOCK_CTRL)

    def set_smm(self, inside: bool) -> None:
        """Put the vCPU into system management mode, or take it out; its registers stay.

        Inside of it a vCPU sees the memslots of as_id 1. An exception that is yet to be delivered,
        as after an instruction that could not be emulated, is forgotten. Needs KVM_CAP_X86_SMM.
        """
        self._mode = None
        events = raw.new("struct kvm_vcpu_events *", {"flags": VcpuEventFlag.SMM})
        events.smi.smm = inside
        raw.ioctl(self.fd, Ioctl.SET_VCPU_EVENTS, events)

    def forget_exceptions(self) -> None:
        """Forget an exception that is yet to be delivered.

        After a triple fault some kernels would deliver the last one to whatever comes next.
        """
        raw.ioctl(self.fd, Ioctl.SET_VCPU_EVENTS, raw.new("struct kvm_vcpu_events *"))

    def set_cpuid(self, cpuid: CData) -> None:
        """Issue KVM_SET_CPUID2 with a `struct kvm_cpuid2 *`; before the first `run`."""
        raw.ioctl(self.fd, Ioctl.SET_CPUID2, cpuid)

    def _modes(self) -> tuple[CData, CData]:
        """Return the special registers of big real mode and of 64-bit mode, made from a reset's."""
        if self._mode_sregs is None:
            real_mode = self.get_sregs()
            long_mode = raw.new("struct kvm_sregs *", real_mode[0])
            set_big_real_mode(real_mode)
            set_long_mode(long_mode)
            self._mode_sregs = real_mode, long_mode
        return self._mode_sregs
