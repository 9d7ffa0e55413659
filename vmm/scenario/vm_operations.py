"""Operations on VMs and vCPUs as such, as data."""

from typing import Literal

from kvm_abi.uapi import Quirk
from vmm.scenario.operation import Hex, Operation

SLOT_ZAP_ALL = int(Quirk.SLOT_ZAP_ALL)
"""With DISABLE_QUIRKS2: a deletion or move zaps the pages of its slot alone."""

CHURN_GFNS = (0x8, 5)
"""The first gfn that ``Churn`` uses, and how many it uses."""


CapName = Literal[
    "MANUAL_DIRTY_LOG_PROTECT2", "DIRTY_LOG_RING", "DIRTY_LOG_RING_ACQ_REL", "DISABLE_QUIRKS2"
]


class EnableCap(Operation, frozen=True, tag="enable_cap", gc=False):
    """KVM_ENABLE_CAP on the VM, with its first argument; ``cap`` is the name without KVM_CAP_.

    At the start of a scenario and right after a ``NewVm`` it comes before any vCPU exists;
    elsewhere after the first one. There are no ``flags`` so far: they have to be 0.

    >>> from vmm import operations
    >>> operations.EnableCap("DIRTY_LOG_RING", argument=0x1000).cap
    'DIRTY_LOG_RING'
    """

    cap: CapName
    argument: int = 0
    flags: Hex = 0


class SetNrMmuPages(Operation, frozen=True, tag="set_nr_mmu_pages", gc=False):
    """KVM_SET_NR_MMU_PAGES: how many page tables KVM may have to shadow those of the VM's guests.

    >>> from vmm import operations
    >>> operations.SetNrMmuPages(64).pages
    64
    """

    pages: int


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
    those that this process closes, every other one has a dirty ring. The outcome is what they
    left behind. ``watch`` "kernel" looks at the kernel's memory, too.

    >>> from vmm import operations
    >>> operations.Lives("killed", times=3).watch
    'process'
    """

    death: Death
    times: int = 1
    watch: Literal["process", "kernel"] = "process"


ChurnKind = Literal[
    "changes",
    "refused-creations",
    "refused-moves",
    "refused-bindings",
    "refused-eventfds",
    "failing-changes",
]


class Churn(Operation, frozen=True, tag="churn", gc=False):
    """A slot is created, logged, moved, refused and deleted, ``times`` times over.

    If the VM has a used vCPU, it reads the slot in between. The slot is deleted while logged, too.

    The ``refused-`` kinds make calls that must be refused, for every reason there is: creations
    beside a slot that is in the way, moves of that one and of a logged one, guest_memfds that
    cannot be bound, or ioeventfds beside one for the same writes. With ``failing-changes`` each
    change, and an ioeventfd, comes only after each of its allocations failed. All of them use
    ``slot`` and the next id, and gpas from 0x8000 to 0xd000, and leave those as they found them;
    the outcome is how much of the kernel's memory they used up.

    >>> from vmm import operations
    >>> operations.Churn(slot=3, times=100).what
    'changes'
    """

    slot: int
    times: int = 1
    what: ChurnKind = "changes"


class SetTssAddr(Operation, frozen=True, tag="set_tss_addr", gc=False):
    """KVM_SET_TSS_ADDR: the gpa of three pages that some processors need for real mode.

    >>> from vmm import operations
    >>> hex(operations.SetTssAddr(0xFFFBD000).gpa)
    '0xfffbd000'
    """

    gpa: Hex


class SetIdentityMapAddr(Operation, frozen=True, tag="set_identity_map_addr", gc=False):
    """KVM_SET_IDENTITY_MAP_ADDR: the gpa of a page that some processors need without paging.

    >>> from vmm import operations
    >>> hex(operations.SetIdentityMapAddr(0xFFFBC000).gpa)
    '0xfffbc000'
    """

    gpa: Hex


class CreateIrqchip(Operation, frozen=True, tag="create_irqchip", gc=False):
    """KVM_CREATE_IRQCHIP: interrupt controllers in the kernel, the local APIC included.

    >>> from vmm import operations
    >>> operations.CreateIrqchip(expect="success").expect
    'success'
    """


class CreateVcpu(Operation, frozen=True, tag="create_vcpu", gc=False):
    """KVM_CREATE_VCPU. Without it, a vCPU is created at its first use.

    >>> from vmm import operations
    >>> operations.CreateVcpu(vcpu=1).vcpu
    1
    """

    vcpu: int = 0


class SetApicBase(Operation, frozen=True, tag="set_apic_base", gc=False):
    """KVM_SET_SREGS: the page of a vCPU's local APIC is at ``gpa`` from then on.

    >>> from vmm import operations
    >>> operations.SetApicBase(0xfed00000).vcpu
    0
    """

    gpa: Hex
    vcpu: int = 0


class UnmapInternalSlots(Operation, frozen=True, tag="unmap_internal_slots", gc=False):
    """The host unmaps the memory of every internal slot.

    It finds them by the mappings that have appeared in the process since before the VM. Memory
    without access takes their place, since the kernel unmaps it again when the VM is closed.

    >>> from vmm import operations
    >>> operations.UnmapInternalSlots(expect="success").expect
    'success'
    """


class PreFaultMemory(Operation, frozen=True, tag="pre_fault_memory", gc=False):
    """KVM_PRE_FAULT_MEMORY: map ``size`` bytes from ``gpa`` on before the guest uses them.

    >>> from vmm import operations
    >>> operations.PreFaultMemory(gpa=0x100000, size=0x2000).size // 4096
    2
    """

    gpa: Hex
    size: Hex
    flags: Hex = 0
    vcpu: int = 0


class NewVm(Operation, frozen=True, tag="new_vm", gc=False):
    """Close the VM, whatever slots it has, and continue with a new one on the same mappings.

    >>> from vmm import operations
    >>> operations.NewVm(expect="success").expect
    'success'
    """


MAX_VMS = 4


class SwitchVm(Operation, frozen=True, tag="switch_vm", gc=False):
    """Continue with VM ``vm``, which is created at its first use; 0 is the initial one.

    The others stay open, on the same mappings.

    >>> from vmm import operations
    >>> operations.SwitchVm(vm=1).vm
    1
    """

    vm: int


class CloseVm(Operation, frozen=True, tag="close_vm", gc=False):
    """Close the VM and its vCPUs; the outcome is what it leaves in the process.

    >>> from vmm import operations
    >>> operations.CloseVm(expect="success").expect
    'success'
    """


InternalOperation = (
    SetTssAddr | SetIdentityMapAddr | CreateIrqchip | CreateVcpu | SetApicBase | UnmapInternalSlots
)
"""Operations that may create internal slots, or unmap their memory."""

VmOperation = EnableCap | SetNrMmuPages | NewVm | SwitchVm | CloseVm | Lives | Churn
