"""A VM with its vCPUs and its guest: operations become system calls and guest runs."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain

from guests import image
from guests.windows import Windows
from kvm_abi import mman, raw
from kvm_abi.raw import CData, KvmError, WrongAnswerError
from kvm_abi.uapi import PAGE_SIZE_BYTES, Cap, Ioctl, MapFlag, Protection, VmType
from vmm.execution.callers import Caller
from vmm.execution.clocks import pause_clock, set_clock
from vmm.execution.devices import Devices
from vmm.execution.dirty import UNWRITTEN, bitmap_of, dirty_pages
from vmm.execution.failing import failing_allocation
from vmm.execution.guestcpu import GuestCpu
from vmm.execution.guesttime import GuestClock
from vmm.execution.hostmemory import HostMemory
from vmm.execution.leftovers import InternalMemory
from vmm.execution.memfds import MemfdFiles
from vmm.execution.processes import FirstRun
from vmm.execution.rings import RingHost
from vmm.execution.vapics import of_vapic
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.scenario.history import AnyOutcome, DirtyPages, Done, MmioKept, Refused, Unmapped
from vmm.scenario.operations import (
    GUEST_MAPPING,
    GUEST_SIZE_BYTES,
    ClearDirtyLog,
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    Execute,
    GetDirtyLog,
    HarvestDirtyRing,
    Instruction,
    KvmclockCtrl,
    MapVcpuPages,
    Place,
    PreFaultMemory,
    Race,
    Scenario,
    SetApicBase,
    SetClockMsr,
    SetCoalescedRing,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetNrMmuPages,
    SetTssAddr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Start,
    Sweep,
    Touch,
    UnmapInternalSlots,
    VapicOperation,
    guest_count,
    pages_of,
)
from vmm.scenario.plan import needs_cpuid
from vmm.scenario.slots import MAX_PAGES

_SET_UP_CALLS = (
    Ioctl.SET_TSS_ADDR,
    Ioctl.SET_IDENTITY_MAP_ADDR,
    Ioctl.CREATE_IRQCHIP,
    Ioctl.CREATE_VCPU,
)


@dataclass(frozen=True, slots=True)
class Home:
    """Where a guest lives: the gpa and the memory of its slot, and its windows."""

    gpa: int
    view: memoryview
    windows: Windows


@dataclass(frozen=True, slots=True)
class Shared:
    """What all VMs of a scenario share."""

    kvm: Kvm
    scenario: Scenario
    touch_limit: int
    memory: HostMemory
    files: MemfdFiles
    clock: GuestClock


_CONSTANT = (Cap.NR_MEMSLOTS, Cap.MULTI_ADDRESS_SPACE)
"""Capabilities of which a VM says the same at all times, whatever slots it has."""


class Machine:
    """One VM of a scenario. Close it before the memory that it uses."""

    def __init__(self, shared: Shared, guest: HostMapping) -> None:
        scenario = shared.scenario
        self._clock = shared.clock
        self._first_run = FirstRun()
        self._memory = shared.memory
        self.files = shared.files
        self._guest = guest
        self._scenario = scenario
        self._guest_gpa = scenario.guest.gpa
        self._cpuid = _cpuid(shared)
        self._homes = [self._home(number) for number in range(guest_count(scenario))]
        self._vcpus: dict[int, Vcpu] = {}
        self._cpus: dict[int, GuestCpu] = {}
        unmaps = UnmapInternalSlots in map(type, scenario.operations)
        self._internal_memory = InternalMemory() if unmaps else None
        self.vm = shared.kvm.create_vm(VmType(scenario.vm_type))
        self.rings = RingHost(self.vm)
        self.devices = Devices(self.vm)
        self._offers = self._ask()

    def _ask(self) -> dict[Cap, int]:
        return {cap: self.vm.check_extension(cap) for cap in _CONSTANT}

    def _check_offers(self) -> None:
        """Raise `WrongAnswerError` if the VM offers something else than when it was new."""
        for cap, offered in self._ask().items():
            if offered != self._offers[cap]:
                seen = f"{offered}, which was {self._offers[cap]} when the VM was new"
                raise WrongAnswerError("KVM_CHECK_EXTENSION", seen, f"KVM_CAP_{cap.name}")

    def close(self) -> None:
        """Close the VM and its vCPUs, which are asked once more before what they have said."""
        with ExitStack() as stack:
            stack.callback(self.devices.close)
            stack.callback(self.vm.close)
            if not self.vm.closed:
                self._check_offers()
                for cpu in self._cpus.values():
                    cpu.check_registers()

    def set_clock(self, op: SetClockMsr) -> AnyOutcome:
        """Make KVM write a clock to guest memory, or stop that."""
        self._cpu(op.vcpu)
        return set_clock(self._vcpus[op.vcpu], op)

    def pause_clock(self, op: KvmclockCtrl) -> AnyOutcome:
        """Issue KVM_KVMCLOCK_CTRL: the guest's clock reports a pause."""
        self._cpu(op.vcpu)
        return pause_clock(self._vcpus[op.vcpu])

    def of_vapic(self, op: VapicOperation) -> AnyOutcome:
        """Issue a call for what of a vCPU's interrupts is in guest memory."""
        self._cpu(op.vcpu)
        return of_vapic(self._vcpus[op.vcpu], op)

    def set_coalesced_ring(self, op: SetCoalescedRing) -> AnyOutcome:
        """Let the ring of coalesced writes go on at an index."""
        self._cpu(op.vcpu)
        return self.devices.set_ring(self._vcpus[op.vcpu], op)

    def collect_mmio(self) -> MmioKept:
        """Read coalesced writes, and count the signals of eventfds."""
        return self.devices.collect(next(iter(self._vcpus.values()), None))

    def set_region(self, op: SetUserMemoryRegion) -> AnyOutcome:
        """Issue KVM_SET_USER_MEMORY_REGION or ..._REGION2."""
        if op.caller == "forked-child":
            return _in_forked_child(lambda: self._set_region(op))
        return self._set_region(op)

    def touch(self, vcpu: int, touches: Sequence[Touch]) -> list[AnyOutcome]:
        """Let a vCPU make touches in one KVM_RUN (and one more for each exit)."""
        return self._cpu(vcpu).touch(touches)

    def read_by_a_vcpu(self, gpa: int) -> None:
        """Let a vCPU, if there is one, read at a gpa."""
        for cpu in list(self._cpus.values())[:1]:
            cpu.touch([Touch(gpa)])

    def sweep(self, op: Sweep) -> AnyOutcome:
        """Let a vCPU execute a string instruction."""
        return self._cpu(op.vcpu).sweep(op)

    def execute(self, op: Execute) -> AnyOutcome:
        """Let a vCPU execute the code in a page."""
        return self._cpu(op.vcpu).execute(op)

    def instruct(self, op: Instruction) -> AnyOutcome:
        """Let a vCPU execute one instruction."""
        return self._cpu(op.vcpu).instruct(op)

    def start(self, op: Start) -> AnyOutcome:
        """Let a vCPU start at an address that the scenario chooses."""
        return self._cpu(op.vcpu).start(op)

    def set_memory_attributes(self, op: SetMemoryAttributes) -> AnyOutcome:
        """Issue KVM_SET_MEMORY_ATTRIBUTES."""
        try:
            self.vm.set_memory_attributes(op.address, op.size, op.attributes, op.flags)
        except KvmError as error:
            return Refused(error.errno or 0)
        return Done()

    def pre_fault(self, op: PreFaultMemory) -> AnyOutcome:
        """Issue KVM_PRE_FAULT_MEMORY."""
        return self._cpu(op.vcpu).pre_fault(op)

    def set_up(
        self, op: SetTssAddr | SetIdentityMapAddr | CreateIrqchip | CreateVcpu | SetApicBase
    ) -> AnyOutcome:
        """Issue a call that may create internal slots."""
        try:
            match op:
                case SetTssAddr():
                    self.vm.set_tss_addr(op.gpa)
                case SetIdentityMapAddr():
                    self.vm.set_identity_map_addr(op.gpa)
                case CreateIrqchip():
                    self.vm.create_irqchip()
                case CreateVcpu():
                    self._new_vcpu(op.vcpu)
                case SetApicBase():
                    self._cpu(op.vcpu)
                    self._vcpus[op.vcpu].set_apic_base(op.gpa)
        except KvmError as error:
            if error.request not in _SET_UP_CALLS:
                raise  # It answers not the operation's own call, but one that comes with it.
            return Refused(error.errno or 0)
        return Done()

    def unmap_internal_slots(self) -> AnyOutcome:
        """Unmap the memory of internal slots."""
        return Unmapped(self._internal_memory.unmap() if self._internal_memory else 0)

    def _cpu(self, index: int) -> GuestCpu:
        """Return a vCPU; it is created at its first use, so that operations can come before it."""
        cpu = self._cpus.get(index)
        if cpu is None:
            make_room = partial(self.rings.make_room, index)
            cpu = self._cpus[index] = self._guest_cpu(index, self._homes[0], make_room)
            cpu.insists = self.rings.has(index)
        return cpu

    def racing_cpu(self, index: int, make_room: Callable[[], bool]) -> GuestCpu:
        """Return a vCPU with its own guest, for use in its own thread.

        ``make_room`` handles its full ring. The state of earlier operations is discarded.
        """
        cpu = self._cpus.pop(index, None)
        if cpu is not None:
            cpu.look_at(0)
        return self._guest_cpu(index, self._homes[index], make_room)

    def _home(self, number: int) -> Home:
        """Write a guest into its memory, page tables included."""
        start = number * GUEST_SIZE_BYTES
        self._guest.write(start, image.code())
        view = self._guest.view()[start : start + GUEST_SIZE_BYTES]
        gpa = self._guest_gpa - start
        return Home(gpa, view, Windows(view, gpa))

    def _guest_cpu(self, index: int, home: Home, make_room: Callable[[], bool]) -> GuestCpu:
        vcpu = self._vcpus.get(index) or self._new_vcpu(index)
        cpu = GuestCpu(vcpu, home.gpa, home.view, home.windows, make_room, self._clock)
        cpu.first_run = self._first_run
        return cpu

    def _new_vcpu(self, index: int) -> Vcpu:
        vcpu = self.vm.create_vcpu(index)
        if self._cpuid is not None:
            vcpu.set_cpuid(self._cpuid)
        self.rings.attach(index, vcpu)
        self._vcpus[index] = vcpu
        return vcpu

    def enable_cap(self, op: EnableCap) -> AnyOutcome:
        """Issue KVM_ENABLE_CAP."""
        try:
            self.vm.enable_cap(Cap[op.cap], op.argument, flags=op.flags)
        except KvmError as error:
            return Refused(error.errno or 0)
        if op.cap in ("DIRTY_LOG_RING", "DIRTY_LOG_RING_ACQ_REL"):
            self.rings.enabled(op.argument & 0xFFFF_FFFF)
        return Done()

    def set_nr_mmu_pages(self, op: SetNrMmuPages) -> AnyOutcome:
        """Issue KVM_SET_NR_MMU_PAGES."""
        try:
            self.vm.set_nr_mmu_pages(op.pages)
        except KvmError as error:
            return Refused(error.errno or 0)
        return Done()

    def map_vcpu_pages(self, op: MapVcpuPages) -> AnyOutcome:
        """Map pages of a vCPU's file, and unmap them."""
        self._cpu(op.vcpu)
        protection = Protection.READ | (Protection.EXEC if op.executable else Protection.NONE)
        flag = MapFlag.SHARED if op.sharing == "shared" else MapFlag.PRIVATE
        size, offset = op.pages * PAGE_SIZE_BYTES, op.first_page * PAGE_SIZE_BYTES
        vcpu = self._vcpus[op.vcpu]
        try:
            address = mman.map_memory(0, size, protection, flag, vcpu.fd, offset)
        except OSError as error:
            return Refused(error.errno or 0)
        try:
            self.rings.compare(vcpu, op.first_page, op.pages, address)
        finally:
            mman.unmap_memory(address, size)
        return Done()

    def harvest_dirty_ring(self, op: HarvestDirtyRing) -> AnyOutcome:
        """Read a vCPU's dirty ring."""
        self._cpu(op.vcpu)
        return self.rings.harvest(op.vcpu)

    @cached_property
    def _log_bytes(self) -> int:
        """The size of a bitmap for the log of any slot that the scenario names."""
        operations = self._scenario.operations
        raced = [host for op in operations if isinstance(op, Race) for host in op.hosts]
        named = chain(operations, *(host.operations for host in raced))
        sizes = [op.memory_size for op in named if isinstance(op, SetUserMemoryRegion)]
        most = max((size for size in sizes if pages_of(size) <= MAX_PAGES), default=0)
        return (pages_of(most) + 2 * 64) // 8

    def clear_dirty_log(self, op: ClearDirtyLog) -> AnyOutcome:
        """Issue KVM_CLEAR_DIRTY_LOG with a bitmap as large as any log of the scenario."""
        bitmap = raw.new("uint8_t[]", self._log_bytes)
        raw.memory_of(bitmap, self._log_bytes)[:] = bitmap_of(op, self._log_bytes)
        readable = op.bitmap == "readable"
        address = raw.address_of(bitmap) if readable else self._memory.inaccessible
        try:
            self.vm.clear_dirty_log_from(op.slot, op.first_page, op.num_pages, address)
        except KvmError as error:
            return Refused(error.errno or 0)
        return Done()

    def get_dirty_log(self, op: GetDirtyLog) -> AnyOutcome:
        """Issue KVM_GET_DIRTY_LOG with a bitmap larger than any log of the scenario."""
        try:
            if op.bitmap == "unwritable":
                self.vm.get_dirty_log_to(op.slot, self._memory.inaccessible)
                return DirtyPages(())
            log = self.vm.get_dirty_log(op.slot, self._log_bytes * 8, UNWRITTEN)
            return dirty_pages(log)
        except KvmError as error:
            return Refused(error.errno or 0)

    def _set_region(self, op: SetUserMemoryRegion) -> AnyOutcome:
        if not op.fail_nth:
            return self._issue_region(op)
        with failing_allocation(op.fail_nth):
            return self._issue_region(op)

    def _issue_region(self, op: SetUserMemoryRegion) -> AnyOutcome:
        try:
            if op.argument == "unreadable":
                self.vm.set_user_memory_region_from(self._memory.inaccessible)
            elif isinstance(op, SetUserMemoryRegion2):
                self.vm.set_user_memory_region2(
                    op.slot,
                    op.flags,
                    op.guest_phys_addr,
                    op.memory_size,
                    self._address(op),
                    op.guest_memfd_offset,
                    self.files.number(op),
                )
            else:
                self.vm.set_user_memory_region(
                    op.slot, op.flags, op.guest_phys_addr, op.memory_size, self._address(op)
                )
        except KvmError as error:
            return Refused(error.errno or 0)
        return Done()

    def _address(self, op: SetUserMemoryRegion) -> HostAddress | int:
        if isinstance(op.userspace_addr, Place) and op.userspace_addr.mapping == GUEST_MAPPING:
            return HostAddress(self._guest, op.userspace_addr.offset)
        return self._memory.address(op.userspace_addr)


def _cpuid(shared: Shared) -> CData | None:
    """Return the CPUID for a scenario's vCPUs; None if they need none."""
    if not needs_cpuid(shared.scenario):
        return None
    return shared.kvm.cpuid_with_gpa_bits((shared.touch_limit - 1).bit_length())


def _in_forked_child(call: Callable[[], AnyOutcome]) -> AnyOutcome:
    """Let a forked child, which has another mm, make a call, and return its outcome.

    Raises what the child has failed by, and `CallerDiedError` if something killed it.
    """
    with Caller(partial(_errno_of, call)) as child:
        number = child.status()
    return Refused(number) if number else Done()


def _errno_of(call: Callable[[], AnyOutcome]) -> int:
    outcome = call()
    return outcome.errno if isinstance(outcome, Refused) else 0
