"""What a kernel and a host can do, as probed: part of every history."""

from typing import Self

import msgspec

from vmm.scenario.operations import MAX_GPA_BITS, SMM
from vmm.scenario.problem import ScenarioError


class PerVm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What KVM_CHECK_EXTENSION answers on a VM of a type of its own, where it depends on the VM.

    The defaults are those of a VM with private memory that any host can run: such a VM has no
    system management mode, and so one address space (kvm_arch_nr_memslot_as_ids), whatever the
    system says.
    """

    address_spaces: int = 1
    readonly_mem: bool = True
    guest_memfd: bool = True
    guest_memfd_flags: int = 0
    memory_attributes: int = 8
    pre_fault: bool = False


class Features(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Answers of KVM_CHECK_EXTENSION, and of trying.

    ``dirty_ring_bytes`` is the size of the smallest dirty ring (0: there is none), and
    ``reads_make_dirty`` says whether the first read of a page is logged like a write.

    ``smm`` says whether a vCPU can be in system management mode, where it sees as_id 1.

    ``vm_types`` are bits, and ``memory_attributes`` what some type of VM takes (0: there is no
    call to set them).

    ``protected`` is what differs in VMs of type KVM_X86_SW_PROTECTED_VM; None if nobody asked one.

    ``quirks`` are those that KVM_CAP_DISABLE_QUIRKS2 can disable.

    ``last_gfn`` is the highest gfn that a memslot may hold, ``touch_limit`` the first gpa that a
    guest cannot reach. ``internal_*`` say whether the kernel makes a slot of its own for what is
    named so. ``zero_page`` says whether this process may map virtual address 0;
    ``hugetlb_pages`` is the number of free 2 MiB pages.
    """

    nr_memslots: int = 32764
    address_spaces: int = 1
    smm: bool = False
    readonly_mem: bool = True
    sync_mmu: bool = True
    user_memory2: bool = False
    guest_memfd: bool = False
    guest_memfd_flags: int = 0
    pre_fault: bool = False
    vm_types: int = 1
    memory_attributes: int = 0
    failing_allocations: bool = False
    manual_dirty_log: bool = False
    dirty_log_initially_set: bool = False
    dirty_ring_bytes: int = 0
    dirty_ring_max_bytes: int = 1 << 20
    dirty_ring_acq_rel: bool = False
    reads_make_dirty: bool = False
    quirks: int = 0
    last_gfn: int = (1 << 40) - 1
    touch_limit: int = 1 << 52
    irqchip: bool = True
    internal_tss: bool = False
    internal_identity: bool = False
    internal_apic: bool = False
    la57: bool = False
    zero_page: bool = False
    hugetlb_pages: int = 0
    protected: PerVm | None = None

    @property
    def slot_zap_all_quirk(self) -> bool:
        """Whether a kernel can be told to zap only what belongs to a slot."""
        return bool(self.quirks & 1 << 7)

    @property
    def sw_protected(self) -> bool:
        """Whether there are VMs with private memory that any host can run."""
        return bool(self.vm_types & 1 << 1) and bool(self.memory_attributes)

    def of_vm(self, vm_type: int) -> Self:
        """Return what holds for a VM of a type.

        A history of an earlier version does not say what ``protected`` VMs have.
        """
        if not vm_type:
            return self
        answers = self.protected or PerVm(
            readonly_mem=self.readonly_mem,
            guest_memfd_flags=self.guest_memfd_flags,
            memory_attributes=self.memory_attributes,
            pre_fault=self.pre_fault,
        )
        smm = self.smm and answers.address_spaces > SMM
        return msgspec.structs.replace(self, smm=smm, **msgspec.structs.asdict(answers))

    @property
    def guest_memfd_mmap(self) -> bool:
        """Whether a guest_memfd can be mapped by the host."""
        return bool(self.guest_memfd_flags & 1)

    @property
    def guest_memfd_shared(self) -> bool:
        """Whether a guest_memfd can be shared with the host from its creation on."""
        return self.guest_memfd_mmap and bool(self.guest_memfd_flags & 2)

    def missing(self, needs: tuple[str, ...], vm_type: int = 0) -> str:
        """Return what the needed features lack, as one phrase; empty if nothing is missing.

        ``vm_type`` is that of the VM that is to have them.
        """
        has = self.of_vm(vm_type) if needs else self
        of_type = " in a VM of type KVM_X86_SW_PROTECTED_VM" if vm_type else ""
        return ", ".join(
            NEEDS[need] + (of_type if getattr(self, need) else "")
            for need in needs
            if not getattr(has, need)
        )


NEEDS = {
    "readonly_mem": "KVM_CAP_READONLY_MEM",
    "sync_mmu": "KVM_CAP_SYNC_MMU",
    "user_memory2": "KVM_CAP_USER_MEMORY2",
    "guest_memfd": "KVM_CAP_GUEST_MEMFD",
    "guest_memfd_mmap": "GUEST_MEMFD_FLAG_MMAP (KVM_CAP_GUEST_MEMFD_FLAGS)",
    "guest_memfd_shared": "GUEST_MEMFD_FLAG_INIT_SHARED (KVM_CAP_GUEST_MEMFD_FLAGS)",
    "memory_attributes": "KVM_CAP_MEMORY_ATTRIBUTES",
    "sw_protected": "KVM_X86_SW_PROTECTED_VM (KVM_CAP_VM_TYPES)",
    "pre_fault": "KVM_CAP_PRE_FAULT_MEMORY",
    "manual_dirty_log": "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
    "dirty_log_initially_set": "KVM_DIRTY_LOG_INITIALLY_SET (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)",
    "dirty_ring_bytes": "KVM_CAP_DIRTY_LOG_RING",
    "slot_zap_all_quirk": "KVM_X86_QUIRK_SLOT_ZAP_ALL (KVM_CAP_DISABLE_QUIRKS2)",
    "dirty_ring_acq_rel": "KVM_CAP_DIRTY_LOG_RING_ACQ_REL",
    "smm": "KVM_CAP_X86_SMM, and KVM_CAP_MULTI_ADDRESS_SPACE of 2",
    "irqchip": "KVM_CAP_IRQCHIP",
    "internal_tss": "an internal slot for the TSS (kvm_intel.unrestricted_guest=0)",
    "internal_identity": "an internal slot for the identity map (unrestricted_guest=0 with EPT)",
    "internal_apic": "an internal slot for the APIC page (APIC virtualisation)",
    "failing_allocations": "failing allocations (/proc/self/fail-nth, and N in "
    "/sys/kernel/debug/failslab/ignore-gfp-wait)",
    "zero_page": "the right to map virtual address 0 (CAP_SYS_RAWIO or vm.mmap_min_addr=0)",
    "hugetlb_pages": "a free 2 MiB huge page (vm.nr_hugepages)",
}
"""Each feature that a scenario may name in ``needs``, and what it is called for people."""

_RANGES = {
    "nr_memslots": range(1, 1 << 16),
    "address_spaces": range(1, 17),
    "guest_memfd_flags": range(1 << 64),
    "vm_types": range(1 << 64),
    "memory_attributes": range(1 << 64),
    "dirty_ring_bytes": range(1 << 32),
    "dirty_ring_max_bytes": range(1 << 32),
    "quirks": range(1 << 64),
    "last_gfn": range(1 << 52),
    "touch_limit": range((1 << MAX_GPA_BITS) + 1),
    "hugetlb_pages": range(1 << 63),
}
"""What a kernel could answer; the other features are true or false."""


def check_features(features: Features) -> None:
    """Raise ScenarioError, with the place, for what no kernel answers: a judge relies on it."""
    answers = [("$.features", features), ("$.features.protected", features.protected)]
    for place, answer in answers:
        for name, within in _RANGES.items():
            value = getattr(answer, name, within.start)
            if value not in within:
                raise ScenarioError(
                    f"{place}.{name}: {value:#x} is not within {within.start} to {within[-1]:#x}"
                )
