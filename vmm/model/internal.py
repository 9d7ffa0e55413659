"""Internal slots, which the kernel creates itself: the TSS, the identity map, and the APIC's page.

Where a kernel has them (not every backend does), their ids are above the user's last one, they
exist in every address space, and may not overlap a user's slot, whichever came first.
"""

import errno
from collections.abc import Callable
from functools import partial

from kvm_abi.uapi import APIC_GPA, IDENTITY_MAP_GPA, TSS_PAGES
from vmm.model.allowed import HARNESS, Allowed
from vmm.model.regions import GFN_LIMIT, GPA_ALIGNED, Memslot
from vmm.model.rule import Rule, documented, source
from vmm.scenario.features import Features
from vmm.scenario.history import Done, Refused, Unmapped
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    CreateIrqchip,
    CreateVcpu,
    InternalOperation,
    SetApicBase,
    SetIdentityMapAddr,
    SetTssAddr,
    UnmapInternalSlots,
    pages_of,
)

TSS = documented("tss", "KVM_SET_TSS_ADDR places three pages below 4 GiB", "api.rst 4.36")
TSS_RANGE = documented(
    "tss-range",
    "the three pages of the TSS end below 4 GiB, else EINVAL",
    "api.rst 4.36; kvm_vm_ioctl_set_tss_addr",
)
IDENTITY_MAP = documented(
    "identity-map",
    "KVM_SET_IDENTITY_MAP_ADDR places a page; 0 is the default place, 0xfffbc000",
    "api.rst 4.40",
)
IDENTITY_MAP_LATE = documented(
    "identity-map-late",
    "KVM_SET_IDENTITY_MAP_ADDR fails once there is a vCPU: EINVAL",
    "api.rst 4.40",
)
INTERNAL_OVERLAP = source(
    "internal-overlap",
    "an internal slot and a user slot never overlap, whichever came first: EEXIST",
    "__x86_set_memory_region; 6fe639792c7b",
)
INTERNAL_ONCE = source(
    "internal-once",
    "an internal slot is placed once, then EEXIST",
    "__x86_set_memory_region",
)
INTERNAL_MEMORY = source(
    "internal-memory",
    "an internal slot has one mapping in the process, for all address spaces",
    "__x86_set_memory_region",
)
IRQCHIP = documented("irqchip", "KVM_CREATE_IRQCHIP gives the VM a local APIC", "api.rst 4.24")
IRQCHIP_KNOWN = source("irqchip-known", "without KVM_CAP_IRQCHIP it is ENOTTY", "kvm_arch_vm_ioctl")
IRQCHIP_ONCE = source("irqchip-once", "a second KVM_CREATE_IRQCHIP is EEXIST", "kvm_arch_vm_ioctl")
IRQCHIP_LATE = source(
    "irqchip-late",
    "KVM_CREATE_IRQCHIP is EINVAL once there is a vCPU",
    "kvm_arch_vm_ioctl",
)
VCPU = documented("vcpu", "KVM_CREATE_VCPU adds a vCPU", "api.rst 4.7")
VCPU_ONCE = source(
    "vcpu-once",
    "creating a vCPU with the id of an existing one is EEXIST",
    "kvm_vm_ioctl_create_vcpu",
)

APIC_BASE = source(
    "apic-base",
    "the registers of a local APIC in the kernel are where its base says: reading them does not "
    "exit, and what is at its former gpas is reached again",
    "Intel SDM vol. 3, 11.4.5; __kvm_apic_set_base, apic_mmio_read",
)

_LAST_TSS_GPA = (1 << 32) - TSS_PAGES * PAGE_SIZE_BYTES
_APIC_PAGE, _TSS, _IDENTITY_MAP = "APIC page", "TSS", "identity map"

IsTaken = Callable[[int, int], bool]
"""(base_gfn, npages) -> whether a user's slot lies there, in any address space."""


class InternalSlots:
    """The internal slots of one VM, and the calls that create them."""

    def __init__(self, features: Features, vcpus: set[int], is_taken: IsTaken) -> None:
        """``vcpus`` are those that exist; this object adds to the set."""
        self._features = features
        self._vcpus = vcpus
        self._is_taken = is_taken
        self.slots: dict[str, Memslot] = {}
        """Those that exist, by name."""
        self._unmapped = 0
        self._identity_gpa = IDENTITY_MAP_GPA
        self.apic_bases: dict[int, int] = {}
        """Where vCPUs have their local APICs, if not where they are at first."""
        self.irqchip = False
        """Whether the VM has in-kernel interrupt controllers."""

    def overlapping(self, base_gfn: int, npages: int) -> Memslot | None:
        """Return an internal slot that shares a gfn with [base_gfn, base_gfn + npages)."""
        for slot in self.slots.values():
            if slot.base_gfn < base_gfn + npages and base_gfn < slot.base_gfn + slot.npages:
                return slot
        return None

    def reached(self, vcpu: int, gpa: int, length: int) -> bool:
        """Whether an access depends on an internal slot, whose content the model does not know.

        If some of them have lost their memory, any access in real mode may depend on that.
        """
        due = () if vcpu in self._vcpus else self._due()
        if not self.slots and not due:
            return False
        if self._unmapped:
            return True
        first, last = pages_of(gpa), pages_of(gpa + length - 1)
        if any(first <= pages_of(page) <= last for _, page in due):
            return True
        return self.overlapping(first, last - first + 1) is not None

    def allowed(self, op: InternalOperation) -> Allowed:
        """Return the outcome that the rules allow."""
        match op:
            case SetTssAddr():
                return self._set_tss(op)
            case SetIdentityMapAddr():
                return self._set_identity_map(op)
            case CreateIrqchip():
                return self._create_irqchip(op)
            case CreateVcpu():
                return self._create_vcpu(op)
            case SetApicBase():
                return Allowed(Done(), APIC_BASE, partial(self._move_apic, op))
            case UnmapInternalSlots():
                return self._unmap()

    def _set_tss(self, op: SetTssAddr) -> Allowed:
        """Return the outcome of KVM_SET_TSS_ADDR."""
        if op.gpa > _LAST_TSS_GPA:
            return _refused(errno.EINVAL, TSS_RANGE)
        if not self._features.internal_tss:
            return Allowed(Done(), TSS)
        return self._place(_TSS, op.gpa, TSS_PAGES, TSS)

    def _set_identity_map(self, op: SetIdentityMapAddr) -> Allowed:
        """Return the outcome of KVM_SET_IDENTITY_MAP_ADDR; the first vCPU creates the page."""
        if self._vcpus:
            return _refused(errno.EINVAL, IDENTITY_MAP_LATE)
        return Allowed(Done(), IDENTITY_MAP, partial(self._set_identity_gpa, op.gpa))

    def _unmap(self) -> Allowed:
        """Return the outcome of unmapping the memory of all of them: each has one mapping."""
        number = len(self.slots) - self._unmapped
        rule = INTERNAL_MEMORY if number else HARNESS
        return Allowed(Unmapped(number), rule, self._note_unmapped)

    def _create_irqchip(self, _: CreateIrqchip) -> Allowed:
        """Return the outcome of KVM_CREATE_IRQCHIP."""
        if not self._features.irqchip:
            return _refused(errno.ENOTTY, IRQCHIP_KNOWN)
        if self.irqchip:
            return _refused(errno.EEXIST, IRQCHIP_ONCE)
        if self._vcpus:
            return _refused(errno.EINVAL, IRQCHIP_LATE)
        return Allowed(Done(), IRQCHIP, self._add_irqchip)

    def _create_vcpu(self, op: CreateVcpu) -> Allowed:
        """Return the outcome of KVM_CREATE_VCPU: it fails if an internal slot has no room."""
        if op.vcpu in self._vcpus:
            return _refused(errno.EEXIST, VCPU_ONCE)
        for name, gpa in self._due():
            refusal = self._refusal(gpa, 1)
            if refusal is not None:
                return _refused(*refusal, partial(self._make_due, before=name))
        return Allowed(Done(), VCPU, partial(self.use_vcpu, op.vcpu))

    def use_vcpu(self, vcpu: int) -> None:
        """Note that a vCPU exists: the first one creates internal slots."""
        if vcpu not in self._vcpus:
            self._make_due()
            self._vcpus.add(vcpu)

    def _due(self) -> list[tuple[str, int]]:
        """Return the internal pages that the next vCPU creates, in order."""
        due: list[tuple[str, int]] = []
        if self._features.internal_apic and self.irqchip and _APIC_PAGE not in self.slots:
            due.append((_APIC_PAGE, APIC_GPA))
        if self._features.internal_identity and _IDENTITY_MAP not in self.slots:
            due.append((_IDENTITY_MAP, self._identity_gpa))
        return due

    def _make_due(self, before: str = "") -> None:
        for name, gpa in self._due():
            if name == before:
                return
            self._add(name, gpa, 1)

    def _place(self, name: str, gpa: int, npages: int, rule: Rule) -> Allowed:
        if name in self.slots:
            return _refused(errno.EEXIST, INTERNAL_ONCE)
        refusal = self._refusal(gpa, npages)
        if refusal is not None:
            return _refused(*refusal)
        return Allowed(Done(), rule, partial(self._add, name, gpa, npages))

    def _refusal(self, gpa: int, npages: int) -> tuple[int, Rule] | None:
        """Return errno and rule if the kernel cannot create an internal slot; else None."""
        if gpa % PAGE_SIZE_BYTES:
            return errno.EINVAL, GPA_ALIGNED
        first = pages_of(gpa)
        if self._is_taken(first, npages) or self.overlapping(first, npages) is not None:
            return errno.EEXIST, INTERNAL_OVERLAP
        if first + npages - 1 > self._features.highest_gfn:
            return errno.EINVAL, GFN_LIMIT
        return None

    def _add(self, name: str, gpa: int, npages: int) -> None:
        number = self._features.nr_memslots + len(self.slots)
        self.slots[name] = Memslot(number, pages_of(gpa), npages, 0, 0)

    def _note_unmapped(self) -> None:
        self._unmapped = len(self.slots)

    def _set_identity_gpa(self, gpa: int) -> None:
        self._identity_gpa = gpa or IDENTITY_MAP_GPA

    def _move_apic(self, op: SetApicBase) -> None:
        self.use_vcpu(op.vcpu)
        if self.irqchip:
            self.apic_bases[op.vcpu] = op.gpa

    def apic_base(self, vcpu: int) -> int:
        """Return the gpa of a vCPU's local APIC."""
        return self.apic_bases.get(vcpu, APIC_GPA)

    def _add_irqchip(self) -> None:
        self.irqchip = True


def _refused(number: int, rule: Rule, adopt: Callable[[], None] | None = None) -> Allowed:
    return Allowed(Refused(number), rule, adopt) if adopt else Allowed(Refused(number), rule)
