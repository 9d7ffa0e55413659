"""Operations on VMs and vCPUs as such, as data."""

from typing import Literal

from vmm.scenario.operation import Hex, Operation

CHURN_GFNS = (0x8, 5)
"""The first gfn that ``Churn`` uses, and how many."""


CapName = Literal[
    "MANUAL_DIRTY_LOG_PROTECT2", "DIRTY_LOG_RING", "DIRTY_LOG_RING_ACQ_REL", "DISABLE_QUIRKS2"
]


class EnableCap(Operation, frozen=True, tag="enable_cap", gc=False):
    """KVM_ENABLE_CAP on the VM, with the first of its arguments; ``cap`` is without KVM_CAP_.

    The first operations of a scenario, and those after a ``NewVm``, come before any vCPU exists
    where they are of this kind; later ones come after.
    """

    cap: CapName
    argument: int = 0


Death = Literal[
    "closed",
    "closed-by-another-thread",
    "closed-while-running",
    "held-by-a-child",
    "killed",
    "killed-while-closing",
]


class Lives(Operation, frozen=True, tag="lives", gc=False):
    """Other VMs live and die beside the scenario's, ``times`` of them, one after the other.

    Each has slots in every address space, a dirty log, and a vCPU whose guest counts for ever; of
    those that this process closes every other one has a dirty ring. The outcome is what they
    left behind. With ``kernel`` the memory of the kernel is looked at, too.
    """

    death: Death
    times: int = 1
    watch: Literal["process", "kernel"] = "process"


ChurnKind = Literal["changes", "refused-creations", "refused-moves", "refused-bindings"]


class Churn(Operation, frozen=True, tag="churn", gc=False):
    """A slot is created, logged, moved, refused and deleted, ``times`` times over.

    It is read in between where the VM has a vCPU that was used before, and deleted logged, too.

    The other kinds ask for what is to be refused, for every reason there is: creations beside a
    slot that stands in the way, moves of that and of a logged one, or guest_memfds that cannot be
    bound. All of it takes ``slot`` and the next id, and gpas from 0x8000 to 0xd000, which are as
    they were when it is over; the outcome is what this used up of the kernel's memory.
    """

    slot: int
    times: int = 1
    what: ChurnKind = "changes"


class SetTssAddr(Operation, frozen=True, tag="set_tss_addr", gc=False):
    """KVM_SET_TSS_ADDR: where three pages lie that some processors need for real mode."""

    gpa: Hex


class SetIdentityMapAddr(Operation, frozen=True, tag="set_identity_map_addr", gc=False):
    """KVM_SET_IDENTITY_MAP_ADDR: where a page lies that some processors need without paging."""

    gpa: Hex


class CreateIrqchip(Operation, frozen=True, tag="create_irqchip", gc=False):
    """KVM_CREATE_IRQCHIP: interrupt controllers in the kernel, and so a local APIC."""


class CreateVcpu(Operation, frozen=True, tag="create_vcpu", gc=False):
    """KVM_CREATE_VCPU. Elsewhere a vCPU is made when it is first used."""

    vcpu: int = 0


class UnmapInternalSlots(Operation, frozen=True, tag="unmap_internal_slots", gc=False):
    """The host unmaps the memory of every slot that the kernel has made for itself.

    That is what has appeared in the process since before the VM. Memory without access takes its
    place, since the kernel unmaps that place once more when the VM is closed.
    """


class PreFaultMemory(Operation, frozen=True, tag="pre_fault_memory", gc=False):
    """KVM_PRE_FAULT_MEMORY: a vCPU maps ``size`` bytes from ``gpa`` on ahead of use."""

    gpa: Hex
    size: Hex
    flags: Hex = 0
    vcpu: int = 0


class NewVm(Operation, frozen=True, tag="new_vm", gc=False):
    """Close the VM, whatever slots it has, and go on with a new one on the same mappings."""


MAX_VMS = 4


class SwitchVm(Operation, frozen=True, tag="switch_vm", gc=False):
    """Go on with VM ``vm``, which is made where there is none yet; 0 is that of the beginning.

    The others live on, on the same mappings.
    """

    vm: int


class CloseVm(Operation, frozen=True, tag="close_vm", gc=False):
    """Close the VM and its vCPUs; what is left of it in the process is the outcome."""
