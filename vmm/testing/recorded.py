"""VMs that remember their memslots, so that a failure can show them."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from kvm_abi import raw
from kvm_abi.raw import RegionsError, WrongAnswerError
from kvm_abi.uapi import PAGE_SIZE_BYTES, Ioctl, VmType
from vmm.kvm.memory import PINNED, HostAddress
from vmm.kvm.regions import Region, Regions
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import Vm


@dataclass(frozen=True, slots=True)
class Memslot:
    """A memslot that was created."""

    slot: int
    flags: int
    gpa: int
    size_bytes: int
    hva: int


class RecordedKvm(Kvm):
    """Creates VMs that remember their memslots, and keeps a list of them."""

    def __init__(self, fd: int) -> None:
        self.machines: list[RecordedVm] = []
        super().__init__(fd)

    def create_vm(self, kind: VmType = VmType.DEFAULT_VM) -> "RecordedVm":
        """Create a VM without memory or vCPUs. Raises `KvmError`."""
        made = RecordedVm(
            raw.new_file(self.fd, Ioctl.CREATE_VM, int(kind)), self.vcpu_mmap_size_bytes
        )
        self.machines.append(made)
        return made


class RecordedVm(Vm):
    """A VM that remembers its memslots and vCPUs."""

    def __init__(self, fd: int, vcpu_mmap_size_bytes: int) -> None:
        super().__init__(fd, vcpu_mmap_size_bytes)
        self.regions: dict[int, Memslot] = {}
        self.vcpus: dict[int, Vcpu] = {}

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """Create a vCPU in its reset state."""
        self.vcpus[vcpu_id] = vcpu = super().create_vcpu(vcpu_id)
        return vcpu

    def set_user_memory_region(
        self,
        slot: int,
        flags: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: HostAddress | int,
    ) -> None:
        """Issue KVM_SET_USER_MEMORY_REGION, and remember the slot."""
        super().set_user_memory_region(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        self._remember(slot, flags, guest_phys_addr, memory_size, userspace_addr)

    def set_user_memory_regions(self, changes: Regions | Iterable[Region]) -> None:
        """Issue KVM_SET_USER_MEMORY_REGION for each change, and remember the slots."""
        wanted = changes if isinstance(changes, Regions) else Regions(changes)
        try:
            super().set_user_memory_regions(wanted)
        except RegionsError as error:
            for each in wanted.changes[: error.done]:
                self._remember(*each)
            raise
        for each in wanted.changes:
            self._remember(*each)

    def set_user_memory_region2(
        self,
        slot: int,
        flags: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: HostAddress | int,
        guest_memfd_offset: int = 0,
        guest_memfd: int = 0,
    ) -> None:
        """Issue KVM_SET_USER_MEMORY_REGION2, and remember the slot."""
        super().set_user_memory_region2(
            slot,
            flags,
            guest_phys_addr,
            memory_size,
            userspace_addr,
            guest_memfd_offset,
            guest_memfd,
        )
        self._remember(slot, flags, guest_phys_addr, memory_size, userspace_addr)

    def _remember(
        self, slot: int, flags: int, gpa: int, size_bytes: int, address: HostAddress | int
    ) -> None:
        if size_bytes == 0:
            self.regions.pop(slot, None)
        else:
            hva = address.hva if isinstance(address, HostAddress) else address
            self.regions[slot] = Memslot(slot, flags, gpa, size_bytes, hva)


def used_slots(machine: Vm) -> Container[int]:
    """Return the slots of a VM; of one that does not remember them, those whose memory it pins."""
    return machine.regions if isinstance(machine, RecordedVm) else PINNED[machine.fd]


def state_lines(machine: RecordedVm) -> Iterator[str]:
    """Yield the slot map of a VM, from the highest gpa down, and each vCPU's last exit."""
    regions = sorted(machine.regions.values(), key=lambda each: (each.slot >> 16, -each.gpa))
    for each in regions:
        pages = each.size_bytes // PAGE_SIZE_BYTES
        space = f" of as_id {each.slot >> 16}" if each.slot >> 16 else ""
        yield (
            f"slot {each.slot & 0xFFFF}{space}: gpa {each.gpa:#x}..{each.gpa + each.size_bytes:#x} "
            f"({pages} page{'s' * (pages != 1)}) -> hva {each.hva:#x}, flags {each.flags:#x}"
        )
    if not regions:
        yield "no memslot"
    for number, vcpu in machine.vcpus.items():
        yield f"vCPU {number}: {_exit_of(vcpu)}"


def _exit_of(vcpu: Vcpu) -> str:
    try:
        return f"last exit {vcpu.last_exit()!r}, rip {vcpu.get_rip():#x}"
    except (ValueError, WrongAnswerError, OSError) as error:
        return str(error)
