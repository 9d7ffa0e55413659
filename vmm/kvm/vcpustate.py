"""`VcpuState`: the state of a vCPU: registers, modes, MSRs, CPUID."""

from typing import NamedTuple

from kvm_abi import raw
from kvm_abi.raw import Buffer, CData
from kvm_abi.uapi import PAGE_SIZE_BYTES, SYNC_X86_REGS, SYNC_X86_SREGS, Ioctl, VcpuEventFlag
from vmm.kvm.closing import Closing
from vmm.kvm.registers import (
    Registers,
    put_registers,
    raw_registers,
    read_registers,
    registers_of,
    set_32_bit_mode,
    set_base,
    set_big_real_mode,
    set_descriptor_tables,
    set_flat_stack,
    set_long_mode,
)

_REGS_BYTES = raw.size_of("struct kvm_regs")
_MSR_SMBASE, _FIRST_SMBASE = 0x9E, 0x30000
_TPR, _SPIV, _APIC_ENABLED = 0x80, 0xF0, 1 << 8  # Registers of a local APIC, and a bit of SPIV.

_Mode = tuple[str | int | tuple[int, int] | None, ...]
"""The mode that the special registers were set to, and its parameters."""


class _ModeSregs(NamedTuple):
    """A `struct kvm_sregs *` for big real mode, for that with a flat stack, and for 64-bit mode."""

    real: CData
    flat: CData
    long: CData


class VcpuState(Closing):
    """The state of a vCPU; `vmm.Vcpu` adds running it."""

    def __init__(self, fd: int, address: int, mmap_size_bytes: int) -> None:
        """Use a vCPU's descriptor, and the memory that it shares with the kernel."""
        self._fd = fd
        self._address = address
        self._run: CData | None = raw.cast("struct kvm_run *", address)
        self._memory: Buffer | None = raw.shared_memory(address, mmap_size_bytes)
        self._mmap_size_bytes = mmap_size_bytes
        self._regs = raw.new("struct kvm_regs *")
        self._mode_sregs: _ModeSregs | None = None
        self._exit_regs: CData | None = None
        self._next_sregs: CData | None = None
        self._shared_at = 0
        self._mode: _Mode | None = None
        self._smbase = _FIRST_SMBASE

    @property
    def fd(self) -> int:
        """The vCPU's descriptor. Raises `ValueError` when the vCPU is closed."""
        if self._fd < 0:
            raise ValueError("the vCPU is closed")
        return self._fd

    @property
    def kvm_run(self) -> CData:
        """The `struct kvm_run *` shared with the kernel; do not use it after `close`."""
        if self._run is None:
            raise ValueError("the vCPU is closed")
        return self._run

    def shared_pages(self) -> bytes:
        """Return the first byte of each page that the vCPU shares with the kernel.

        A page that the kernel has announced but does not have kills the process by SIGBUS. Raises
        `ValueError` when the vCPU is closed.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     len(vm.create_vcpu(0).shared_pages()) * 0x1000 == kvm.vcpu_mmap_size_bytes
        True
        """
        if self._memory is None:
            raise ValueError("the vCPU is closed")
        starts = range(0, self._mmap_size_bytes, PAGE_SIZE_BYTES)
        return b"".join(self._memory[at : at + 1] for at in starts)

    def get_regs(self) -> Registers:
        """Return the general registers. Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     hex(vcpu.get_regs().rip)
        '0xfff0'
        """
        raw.ioctl(self.fd, Ioctl.GET_REGS, self._regs)
        return registers_of(self._regs)

    def set_regs(self, registers: Registers) -> None:
        """Set all general registers. Raises `KvmError`.

        >>> from vmm import Kvm, Registers
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.set_regs(Registers(rax=7, rip=0x100))
        ...     vcpu.get_regs().rax
        7
        """
        raw.ioctl(self.fd, Ioctl.SET_REGS, raw_registers(registers))

    def get_rip(self) -> int:
        """Return only RIP, which is quicker than all registers. Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     hex(vcpu.get_rip())
        '0xfff0'
        """
        raw.ioctl(self.fd, Ioctl.GET_REGS, self._regs)
        return int(self._regs.rip)

    def share_registers(self) -> None:
        """Let every exit leave the general registers in `kvm_run`; needs KVM_CAP_SYNC_REGS.

        `Vm.create_vcpu` calls it if that is available. Raises `ValueError` when the vCPU is closed.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.share_registers()
        """
        run = self.kvm_run
        run.kvm_valid_regs = SYNC_X86_REGS
        address = raw.address_of(run.s.padding)  # A struct kvm_sync_regs.
        self._exit_regs = raw.cast("struct kvm_regs *", address)
        self._next_sregs = raw.cast("struct kvm_sregs *", address + _REGS_BYTES)
        self._shared_at = address - self._address

    def exit_rip(self) -> int:
        """Return RIP at the last exit; without a system call if registers are shared.

        Raises `KvmError` if they are not shared, and the kernel refuses.

        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("hlt"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     vcpu.run(), vcpu.exit_rip()
        (Hlt(), 1)
        """
        return self.get_rip() if self._exit_regs is None else int(self._exit_regs.rip)

    def exit_registers(self) -> Registers:
        """Return the general registers at the last exit.

        If they are shared, this needs no system call. Raises `KvmError` if they are not.

        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("mov $5, %ax; hlt"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     vcpu.run(), vcpu.exit_registers().rax
        (Hlt(), 5)
        """
        if self._exit_regs is None or self._memory is None:
            return self.get_regs()
        return read_registers(self._memory, self._shared_at)

    def set_rip(self, rip: int) -> None:
        """Change only RIP. Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.set_rip(0x100)
        ...     hex(vcpu.get_rip())
        '0x100'
        """
        regs = self._regs
        raw.ioctl(self.fd, Ioctl.GET_REGS, regs)
        regs.rip = rip
        raw.ioctl(self.fd, Ioctl.SET_REGS, regs)

    def get_sregs(self) -> CData:
        """Return a copy of the special registers, a `struct kvm_sregs *`. Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     hex(vcpu.get_sregs().cs.base)
        '0xffff0000'
        """
        sregs = raw.new("struct kvm_sregs *")
        raw.ioctl(self.fd, Ioctl.GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: CData) -> None:
        """Set all special registers from a `struct kvm_sregs *`. Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     sregs = vcpu.get_sregs()
        ...     sregs.cs.base, sregs.cs.selector = 0x1000, 0x100
        ...     vcpu.set_sregs(sregs)
        """
        self._mode = None
        raw.ioctl(self.fd, Ioctl.SET_SREGS, sregs)

    def enter_big_real_mode(self, base: int, rip: int, *, at_run: bool = False) -> None:
        """Set up real mode with code and stack at `base`, and flat data segments.

        `base` is a gpa below 4 GiB, `rip` an offset from it. CS and SS have the limit of real
        mode; the other segments begin at 0 and reach all of the first 4 GiB. General
        registers become 0.

        This and the other modes are set up with KVM_SET_SREGS and KVM_SET_REGS. With `at_run`, and
        if registers are shared, the next KVM_RUN sets them instead, without a system call: use it
        only if the guest before did not change the special registers. Raises `KvmError`, and
        `ValueError` for another base.

        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("mov $0x12345678, %ebx; movb $1, (%ebx)"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     hex(vcpu.run().gpa)
        '0x12345678'
        """
        mode, registers = ("real", base), Registers(rip=rip)
        if at_run and self._goes_on(mode, registers):
            return
        real_mode = self._modes().real
        set_base(real_mode.cs, base)
        set_base(real_mode.ss, base)
        self._enter(mode, real_mode, registers, at_run)

    def enter_flat_real_mode(
        self,
        base: int,
        registers: Registers,
        table: tuple[int, int] | None = None,
        *,
        at_run: bool = False,
    ) -> None:
        r"""Set up big real mode with code at `base`, and a flat stack segment.

        The stack pointer has 32 bits and is a gpa. `table` is base and limit of both descriptor
        tables (GDTR and IDTR). Raises `KvmError`, and `ValueError` for a base beyond 4 GiB.

        >>> from vmm import HostAddress, HostMapping, Kvm, Registers, assemble
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("push %ax; hlt"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_flat_real_mode(0x1000, Registers(rax=7, rsp=0x2000))
        ...     vcpu.run(), memory.read(0xffe, 2)
        (Hlt(), b'\x07\x00')
        """
        mode = ("flat", base, table)
        if at_run and self._goes_on(mode, registers):
            return
        flat_mode = self._modes().flat
        set_base(flat_mode.cs, base)
        if table is not None:
            flat_mode = raw.new("struct kvm_sregs *", flat_mode[0])
            set_descriptor_tables(flat_mode, *table)
        self._enter(mode, flat_mode, registers, at_run)

    def enter_long_mode(
        self,
        cr3: int,
        registers: Registers,
        table: tuple[int, int] | None = None,
        *,
        at_run: bool = False,
    ) -> None:
        """Set up 64-bit mode with page tables at the gpa `cr3`, flat segments, and no IDT.

        Without a table, every fault is a triple fault: a `Shutdown`. The valid bits of CR3 and page
        table entries depend on the vCPU's CPUID. `table` is base and limit of GDTR and IDTR.

        Raises `KvmError`, EINVAL for a CR3 with more address bits than the vCPU's CPUID has.

        >>> from vmm import HostAddress, HostMapping, Kvm, Registers, assemble
        >>> with HostMapping.anonymous(0x4000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.set_user_memory_region(0, 0, 0, 0x4000, HostAddress(memory, 0))
        ...     memory.write(0x1000, (0x2003).to_bytes(8, "little"))  # PML4: present, writable
        ...     memory.write(0x2000, (0x3003).to_bytes(8, "little"))
        ...     memory.write(0x3000, (0x83).to_bytes(8, "little"))  # A page of 2 MiB at gpa 0.
        ...     memory.write(0, assemble("shl $40, %rax; hlt", bits=64))
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.set_cpuid(kvm.supported_cpuid())
        ...     vcpu.enter_long_mode(cr3=0x1000, registers=Registers(rax=1))
        ...     vcpu.run(), hex(vcpu.get_regs().rax)
        (Hlt(), '0x10000000000')
        """
        mode = ("long", cr3, table)
        if at_run and self._goes_on(mode, registers):
            return
        long_mode = self._modes().long
        if table is not None:
            long_mode = raw.new("struct kvm_sregs *", long_mode[0])
            set_descriptor_tables(long_mode, *table)
        long_mode.cr3 = cr3
        self._enter(mode, long_mode, registers, at_run)

    def enter_32_bit_mode(self, cr3: int, registers: Registers, *, pae: bool) -> None:
        """Set up 32-bit mode with page tables at the gpa `cr3`, flat segments, and no IDT.

        Without `pae` they have two levels, and pages of 4 MiB (CR4.PSE); with it, `cr3` is the gpa
        of four entries, a multiple of 32. Every fault is a triple fault: a `Shutdown`.

        Raises `KvmError`.

        >>> from vmm import HostAddress, HostMapping, Kvm, Registers
        >>> with HostMapping.anonymous(0x2000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.set_user_memory_region(0, 0, 0, 0x2000, HostAddress(memory, 0))
        ...     memory.write(0x1000, (0x83).to_bytes(4, "little"))  # A page of 4 MiB at gpa 0.
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_32_bit_mode(cr3=0x1000, registers=Registers(rip=0x800), pae=False)
        ...     vcpu.get_sregs().cr3, vcpu.get_sregs().efer
        (4096, 0)
        """
        sregs = raw.new("struct kvm_sregs *", self._modes().long[0])
        set_32_bit_mode(sregs, pae)
        sregs.cr3 = cr3
        self._enter(("32-bit", cr3, pae), sregs, registers, at_run=False)

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
        """Let the next KVM_RUN set the general registers, if the vCPU is already in the mode."""
        memory = self._memory
        if mode != self._mode or memory is None or self._next_sregs is None:
            return False
        put_registers(memory, self._shared_at, registers)
        self.kvm_run.kvm_dirty_regs |= SYNC_X86_REGS
        return True

    def set_msr(self, index: int, data: int) -> int:
        """Issue KVM_SET_MSRS for one MSR, and return how many were set: 1, or 0 if it is refused.

        Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.set_msr(0xc0000102, 0x1000)  # MSR_KERNEL_GS_BASE
        1
        """
        msrs = raw.new("struct kvm_msrs *", {"nmsrs": 1, "entries": 1})
        msrs.entries[0].index, msrs.entries[0].data = index, data
        return raw.ioctl(self.fd, Ioctl.SET_MSRS, msrs)

    def tell_of_pause(self) -> None:
        """Issue KVM_KVMCLOCK_CTRL: at the next `run` the guest's clock says that it was paused.

        Raises `KvmError`, EINVAL if the guest has no such clock.

        >>> from vmm import Kvm, KvmError
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     try:
        ...         vcpu.tell_of_pause()
        ...     except KvmError as error:
        ...         print(error)
        KVM_KVMCLOCK_CTRL(): EINVAL Invalid argument
        """
        raw.ioctl(self.fd, Ioctl.KVMCLOCK_CTRL)

    def set_smm(self, inside: bool) -> None:
        """Put the vCPU into system management mode, or take it out; its registers stay.

        In SMM a vCPU sees the memslots of as_id 1. A pending exception, as after an instruction
        that could not be emulated, is discarded. Needs KVM_CAP_X86_SMM. Raises `KvmError`, EINVAL
        without that.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     if vm.check_extension(Cap.X86_SMM):
        ...         vm.create_vcpu(0).set_smm(True)
        """
        self._mode = None
        events = raw.new("struct kvm_vcpu_events *", {"flags": VcpuEventFlag.SMM})
        events.smi.smm = inside
        raw.ioctl(self.fd, Ioctl.SET_VCPU_EVENTS, events)

    def set_apic_base(self, gpa: int) -> None:
        """Move the page of the vCPU's local APIC to a gpa. Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.create_irqchip()
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.set_apic_base(0xfed00000)
        ...     hex(vcpu.get_sregs().apic_base & -0x1000)
        '0xfed00000'
        """
        sregs = self.get_sregs()
        sregs.apic_base = gpa | sregs.apic_base % PAGE_SIZE_BYTES
        self.set_sregs(sregs)
        for each in self._mode_sregs or ():
            each.apic_base = sregs.apic_base

    def set_apic(self, *, enabled: bool, priority: int | None = None) -> None:
        """Enable the vCPU's local APIC by software, or not; it may get another task priority.

        Raises `KvmError`, EINVAL without a local APIC in the kernel.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.create_irqchip()
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.set_apic(enabled=True, priority=0x30)
        ...     vcpu.get_sregs().cr8  # Its upper half.
        3
        """
        lapic = self._lapic()
        spurious = _number(lapic, _SPIV) & ~_APIC_ENABLED
        _put(lapic, _SPIV, spurious | _APIC_ENABLED * enabled)
        if priority is not None:
            _put(lapic, _TPR, priority)
        raw.ioctl(self.fd, Ioctl.SET_LAPIC, lapic)
        for each in self._mode_sregs or ():  # A new mode sets CR8, which is a part of TPR.
            each.cr8 = _number(lapic, _TPR) >> 4

    def _lapic(self) -> CData:
        lapic = raw.new("struct kvm_lapic_state *")
        raw.ioctl(self.fd, Ioctl.GET_LAPIC, lapic)
        return lapic

    def set_vapic_addr(self, gpa: int) -> None:
        """Say where in guest memory the vCPU's task priority is; 0: nowhere.

        Raises `KvmError`, EINVAL for a gpa without a slot, or without a local APIC in the kernel.

        >>> from vmm import Kvm, KvmError
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.create_irqchip()
        ...     try:
        ...         vm.create_vcpu(0).set_vapic_addr(0x1000)
        ...     except KvmError as error:
        ...         print(error)
        KVM_SET_VAPIC_ADDR(vapic_addr=0x1000): EINVAL Invalid argument
        """
        raw.ioctl(self.fd, Ioctl.SET_VAPIC_ADDR, raw.new("struct kvm_vapic_addr *", (gpa,)))

    def send_smi(self) -> None:
        """Issue KVM_SMI: at the next `run` the vCPU enters system management mode.

        It saves its state to guest memory, and goes on at gpa 0x38000, both in as_id 1: without
        memory there the VM is dead on some kernels. Needs KVM_CAP_X86_SMM. Raises `KvmError`.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     if vm.check_extension(Cap.X86_SMM):
        ...         vm.create_vcpu(0).send_smi()
        """
        raw.ioctl(self.fd, Ioctl.SMI)

    def set_smbase(self, smbase: int) -> None:
        """Issue KVM_SET_MSRS for MSR_IA32_SMBASE: where a vCPU begins, and saves its state, in SMM.

        Needs KVM_CAP_X86_SMM. Raises `KvmError`.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     if vm.check_extension(Cap.X86_SMM):
        ...         vm.create_vcpu(0).set_smbase(0x30000)
        """
        if self._smbase != smbase:
            self.set_msr(_MSR_SMBASE, smbase)
            self._smbase = smbase

    def forget_exceptions(self) -> None:
        """Discard a pending exception.

        After a triple fault, some kernels would deliver the last exception to the next guest.
        Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.forget_exceptions()
        """
        raw.ioctl(self.fd, Ioctl.SET_VCPU_EVENTS, raw.new("struct kvm_vcpu_events *"))

    def set_cpuid(self, cpuid: CData) -> None:
        """Issue KVM_SET_CPUID2 with a `struct kvm_cpuid2 *`; before the first `run`.

        Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.set_cpuid(kvm.supported_cpuid())
        """
        raw.ioctl(self.fd, Ioctl.SET_CPUID2, cpuid)

    def _modes(self) -> _ModeSregs:
        """Return the special registers of each mode, made from those of a reset."""
        if self._mode_sregs is None:
            real = self.get_sregs()
            long = raw.new("struct kvm_sregs *", real[0])
            set_big_real_mode(real)
            flat = raw.new("struct kvm_sregs *", real[0])
            set_flat_stack(flat)
            set_long_mode(long)
            self._mode_sregs = _ModeSregs(real, flat, long)
        return self._mode_sregs


def _number(lapic: CData, register: int) -> int:
    return int.from_bytes(raw.bytes_of(lapic, 4, register), "little")


def _put(lapic: CData, register: int, value: int) -> None:
    raw.memory_of(lapic, raw.size_of("struct kvm_lapic_state"))[register : register + 4] = (
        value.to_bytes(4, "little")
    )
