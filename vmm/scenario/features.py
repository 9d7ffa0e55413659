"""What a kernel and a host can do, as probed: part of every history."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

import msgspec

from kvm_abi.uapi import Cap, DirtyLogManual, GuestMemfdFlag, MemoryAttribute, Quirk, VmType
from vmm.scenario.operations import MAX_GPA_BITS, SMM
from vmm.scenario.problem import ScenarioError

_SW_PROTECTED = 1 << VmType.SW_PROTECTED_VM


class PerVm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Answers of KVM_CHECK_EXTENSION on a VM of a non-default type, where they depend on the VM.

    The defaults are those of KVM_X86_SW_PROTECTED_VM: such a VM has no system management mode, and
    so one address space (kvm_arch_nr_memslot_as_ids), whatever the system says.

    >>> from vmm import PerVm
    >>> PerVm().address_spaces
    1
    """

    address_spaces: int = 1
    readonly_mem: bool = True
    guest_memfd: bool = True
    guest_memfd_flags: int = 0
    memory_attributes: int = int(MemoryAttribute.PRIVATE)
    pre_fault: bool = False


class Features(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the probe found: answers of KVM_CHECK_EXTENSION, and results of trying.

    ``dirty_ring_bytes`` is the size of the smallest dirty ring (0: there is none), and
    ``reads_make_dirty`` says whether the first read of a page is logged like a write.

    ``smm`` says whether a vCPU can be in system management mode, where it sees as_id 1.

    ``vm_types`` is a bitmask, and ``memory_attributes`` are those that some type of VM supports (0:
    the ioctl that sets them does not exist).

    ``protected`` is what differs in VMs of type KVM_X86_SW_PROTECTED_VM; None if none was probed.

    ``quirks`` are those that KVM_CAP_DISABLE_QUIRKS2 can disable.

    ``last_gfn`` is the highest gfn that a memslot may hold, ``touch_limit`` the first gpa that a
    guest cannot reach. ``internal_*`` say whether the kernel creates an internal slot of that kind.
    ``zero_page`` says whether this process may map virtual address 0; ``hugetlb_pages`` is the
    number of free 2 MiB pages; ``collapse`` says whether MADV_COLLAPSE makes huge pages, ``ksm``
    whether KSM merges equal pages, ``pfnmap`` whether this process can map page
    frames as a driver does, ``userfaultfd`` whether it handles missing and write-protected
    pages; ``forced_emulation`` says whether KVM emulates an instruction with the prefix that asks
    for it, ``emulates_real_mode`` whether it emulates all that a guest executes in real mode,
    ``starts_32_bit`` whether guests with page tables run in 32-bit mode, too, and
    ``process_files`` whether /proc shows the mappings and open files of this process.

        >>> from vmm import features_here
        >>> features_here().nr_memslots >= 32
        True
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
    la57: bool = False  # Part of the format: nothing asks for it yet.
    zero_page: bool = False
    hugetlb_pages: int = 0
    coalesced_mmio: bool = False
    coalesced_pio: bool = False
    ioeventfd: bool = False
    kvmclock: bool = False
    kvmclock_ctrl: bool = False
    steal_time: bool = False
    collapse: bool = False
    ksm: bool = False
    userfaultfd: bool = False
    pfnmap: bool = False
    forced_emulation: bool = False
    emulates_real_mode: bool = False
    starts_32_bit: bool = False
    process_files: bool = True
    protected: PerVm | None = None

    @property
    def highest_gfn(self) -> int:
        """The highest gfn that the rules allow in a slot, whatever a kernel accepts.

        Kernels with one of these features came after 86931ff7207b, which introduced a last gfn, and
        no processor addresses more than 52 bits.
        """
        is_newer = self.user_memory2 or self.dirty_ring_acq_rel or self.memory_attributes
        return min(self.last_gfn, (1 << 40) - 1) if is_newer else self.last_gfn

    @property
    def slot_zap_all_quirk(self) -> bool:
        """Whether a kernel can be told to zap only the pages of the slot that changes."""
        return bool(self.quirks & Quirk.SLOT_ZAP_ALL)

    @property
    def sw_protected(self) -> bool:
        """Whether VMs of type KVM_X86_SW_PROTECTED_VM exist, and have private memory."""
        return bool(self.vm_types & _SW_PROTECTED) and bool(self.memory_attributes)

    def of_vm(self, vm_type: int) -> Self:
        """Return the features of a VM of a type.

        Histories of earlier versions have no ``protected``.

        Raises nothing.

        >>> from vmm import Features, VmType
        >>> Features(address_spaces=2).of_vm(VmType.SW_PROTECTED_VM).address_spaces
        1
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
        """Whether the host can map a guest_memfd."""
        return bool(self.guest_memfd_flags & GuestMemfdFlag.MMAP)

    @property
    def guest_memfd_shared(self) -> bool:
        """Whether a guest_memfd can be created as shared with the host."""
        return self.guest_memfd_mmap and bool(self.guest_memfd_flags & GuestMemfdFlag.INIT_SHARED)

    def missing(self, needs: tuple[str, ...], vm_type: int = 0) -> str:
        """Return which needed features are missing, as one phrase; empty if none is.

        ``vm_type`` is the type of the VM that needs them.

        Raises `KeyError` for an unknown need.

        >>> from vmm import Features
        >>> Features().missing(("hugetlb_pages",))
        'a free 2 MiB huge page (vm.nr_hugepages)'
        """
        has = self.of_vm(vm_type) if needs else self
        of_type = " in a VM of type KVM_X86_SW_PROTECTED_VM" if vm_type else ""
        return ", ".join(
            NEEDS[need] + (of_type if getattr(self, need) else "")
            for need in needs
            if not getattr(has, need)
        )


@dataclass(frozen=True, slots=True)
class Feature:
    """One field or property of `Features`: a row of `TABLE`.

    ``words`` is its name for people; if empty, no scenario can need it. ``cap`` is the capability
    that says whether the feature exists: all of ``bits`` are set in the answer, or, with 0, any
    bit. ``within`` is the range of possible answers if the feature is a number; else it is true or
    false.
    """

    name: str
    words: str = ""
    cap: Cap | None = None
    bits: int = 0
    within: range | None = None

    def answered(self, answer: int) -> bool | int:
        """Return the value of the feature for an answer of KVM_CHECK_EXTENSION for ``cap``."""
        if self.within is not None:
            return answer
        return answer & self.bits == self.bits if self.bits else bool(answer)


_MANUAL = Cap.MANUAL_DIRTY_LOG_PROTECT2
_FLAGS = Cap.GUEST_MEMFD_FLAGS
_SHARED = GuestMemfdFlag.MMAP | GuestMemfdFlag.INIT_SHARED

TABLE = (
    Feature("nr_memslots", cap=Cap.NR_MEMSLOTS, within=range(1, 1 << 16)),
    Feature("address_spaces", cap=Cap.MULTI_ADDRESS_SPACE, within=range(1, 17)),
    Feature("readonly_mem", "KVM_CAP_READONLY_MEM", Cap.READONLY_MEM),
    Feature("sync_mmu", "KVM_CAP_SYNC_MMU", Cap.SYNC_MMU),
    Feature("user_memory2", "KVM_CAP_USER_MEMORY2", Cap.USER_MEMORY2),
    Feature("guest_memfd", "KVM_CAP_GUEST_MEMFD", Cap.GUEST_MEMFD),
    Feature("guest_memfd_flags", cap=_FLAGS, within=range(1 << 64)),
    Feature(
        "guest_memfd_mmap",
        "GUEST_MEMFD_FLAG_MMAP (KVM_CAP_GUEST_MEMFD_FLAGS)",
        _FLAGS,
        GuestMemfdFlag.MMAP,
    ),
    Feature(
        "guest_memfd_shared",
        "GUEST_MEMFD_FLAG_INIT_SHARED (KVM_CAP_GUEST_MEMFD_FLAGS)",
        _FLAGS,
        _SHARED,
    ),
    Feature(
        "memory_attributes",
        "KVM_CAP_MEMORY_ATTRIBUTES",
        Cap.MEMORY_ATTRIBUTES,
        MemoryAttribute.PRIVATE,
        within=range(1 << 64),
    ),
    Feature("vm_types", cap=Cap.VM_TYPES, within=range(1 << 64)),
    Feature(
        "sw_protected",
        "KVM_X86_SW_PROTECTED_VM (KVM_CAP_VM_TYPES)",
        Cap.VM_TYPES,
        _SW_PROTECTED,
    ),
    Feature("pre_fault", "KVM_CAP_PRE_FAULT_MEMORY", Cap.PRE_FAULT_MEMORY),
    Feature("manual_dirty_log", "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", _MANUAL),
    Feature(
        "dirty_log_initially_set",
        "KVM_DIRTY_LOG_INITIALLY_SET (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)",
        _MANUAL,
        DirtyLogManual.INITIALLY_SET,
    ),
    Feature(
        "dirty_ring_bytes", "KVM_CAP_DIRTY_LOG_RING", Cap.DIRTY_LOG_RING, within=range(1 << 32)
    ),
    Feature("dirty_ring_max_bytes", cap=Cap.DIRTY_LOG_RING, within=range(1 << 32)),
    Feature("quirks", cap=Cap.DISABLE_QUIRKS2, within=range(1 << 64)),
    Feature(
        "slot_zap_all_quirk",
        "KVM_X86_QUIRK_SLOT_ZAP_ALL (KVM_CAP_DISABLE_QUIRKS2)",
        Cap.DISABLE_QUIRKS2,
        Quirk.SLOT_ZAP_ALL,
    ),
    Feature("dirty_ring_acq_rel", "KVM_CAP_DIRTY_LOG_RING_ACQ_REL", Cap.DIRTY_LOG_RING_ACQ_REL),
    Feature("smm", "KVM_CAP_X86_SMM, and KVM_CAP_MULTI_ADDRESS_SPACE of 2", Cap.X86_SMM),
    Feature("reads_make_dirty"),
    Feature("last_gfn", within=range(1 << 52)),
    Feature("touch_limit", within=range((1 << MAX_GPA_BITS) + 1)),
    Feature("irqchip", "KVM_CAP_IRQCHIP", Cap.IRQCHIP),
    Feature("internal_tss", "an internal slot for the TSS (kvm_intel.unrestricted_guest=0)"),
    Feature(
        "internal_identity",
        "an internal slot for the identity map (unrestricted_guest=0 with EPT)",
    ),
    Feature("internal_apic", "an internal slot for the APIC page (APIC virtualisation)"),
    Feature("la57"),
    Feature(
        "failing_allocations",
        "failing allocations (/proc/self/fail-nth, and N in "
        "/sys/kernel/debug/failslab/ignore-gfp-wait)",
    ),
    Feature(
        "zero_page",
        "the right to map virtual address 0 (CAP_SYS_RAWIO or vm.mmap_min_addr=0)",
    ),
    Feature("coalesced_mmio", "KVM_CAP_COALESCED_MMIO", Cap.COALESCED_MMIO),
    Feature("coalesced_pio", "KVM_CAP_COALESCED_PIO", Cap.COALESCED_PIO),
    Feature("ioeventfd", "KVM_CAP_IOEVENTFD", Cap.IOEVENTFD),
    Feature("kvmclock", "kvmclock (KVM_FEATURE_CLOCKSOURCE2)"),
    Feature("kvmclock_ctrl", "KVM_CAP_KVMCLOCK_CTRL", Cap.KVMCLOCK_CTRL),
    Feature("steal_time", "steal time (KVM_FEATURE_STEAL_TIME)"),
    Feature("collapse", "MADV_COLLAPSE (Linux 6.1)"),
    Feature("ksm", "KSM (1 in /sys/kernel/mm/ksm/run)"),
    Feature(
        "userfaultfd",
        "userfaultfd for what the kernel touches (CAP_SYS_PTRACE or "
        "vm.unprivileged_userfaultfd=1, Linux 5.7)",
    ),
    Feature("pfnmap", "/dev/udmabuf that maps page frames (CONFIG_UDMABUF, about Linux 6.11)"),
    Feature("forced_emulation", "kvm.force_emulation_prefix=1"),
    Feature("emulates_real_mode"),
    Feature("starts_32_bit", "guests with page tables in 32-bit mode"),
    Feature("process_files", "/proc/self/maps and /proc/self/fd (a mounted /proc)"),
    Feature("hugetlb_pages", "a free 2 MiB huge page (vm.nr_hugepages)", within=range(1 << 63)),
)
"""Every feature. tests/unit/scenario/test_feature_table.py names the places that lack one."""

ROWS = {row.name: row for row in TABLE}

_RANGES = {row.name: row.within for row in TABLE if row.within is not None}

NEEDS = {row.name: row.words for row in TABLE if row.words}
"""Each feature that a scenario may name in ``needs``, with its name for people."""

_Answers = TypeVar("_Answers", Features, PerVm)


def answered(has: Callable[[Cap], int], kind: type[_Answers]) -> _Answers:
    """Return what KVM_CHECK_EXTENSION, called through ``has``, says. The probe adds the rest."""
    answers = {name: ROWS[name].answered(has(cap)) for name, cap in by_capability(kind)}
    return msgspec.convert(answers, kind)


def by_capability(kind: type[Features | PerVm]) -> Iterator[tuple[str, Cap]]:
    """Yield each field that is an answer of KVM_CHECK_EXTENSION, with its capability."""
    for name in kind.__struct_fields__:
        row = ROWS.get(name)
        if row is not None and row.cap is not None:
            yield name, row.cap


def impossible(features: Features) -> Iterator[tuple[str, Feature, str]]:
    """Yield each value that no kernel answers: its place, its row, and what is wrong with it."""
    answers = [("$.features", features), ("$.features.protected", features.protected)]
    for place, answer in answers:
        for name, within in _RANGES.items():
            value = getattr(answer, name, within.start)
            if value not in within:
                wrong = f"{value:#x} is not within {within.start} to {within[-1]:#x}"
                yield f"{place}.{name}", ROWS[name], wrong


def check_features(features: Features) -> None:
    """Raise ScenarioError, with the place, for a value that no kernel answers.

    The judge relies on these ranges.
    """
    for place, _, wrong in impossible(features):
        raise ScenarioError(f"{place}: {wrong}")
