"""The outcome of KVM_SET_USER_MEMORY_REGION: its checks in order, and the kind of change."""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from vmm.model.array import Change
from vmm.model.rule import Rule, documented, source
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    Hva,
    Place,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    pages_of,
)
from vmm.scenario.slots import KERNEL_HALF, MAX_PAGES, as_id_of, id_of

FOREIGN_PROCESS = source(
    "foreign-process",
    "a VM answers EIO to any process but the one that created it",
    "kvm_vm_ioctl: kvm->mm != current->mm",
)
BAD_POINTER = source(
    "bad-pointer",
    "an unreadable argument is EFAULT",
    "kvm_vm_ioctl: copy_from_user",
)
FIRST_FORM_FLAGS = source(
    "first-form-flags",
    "the first form takes LOG_DIRTY_PAGES and READONLY only",
    "kvm_vm_ioctl_set_memory_region; KVM_SET_USER_MEMORY_REGION_V1_FLAGS",
)
SLOT_ID_RANGE = documented(
    "slot-id-range",
    "the low 16 bits of slot are below KVM_CAP_NR_MEMSLOTS, else EINVAL",
)
FLAGS_VALID = documented(
    "flags-valid",
    "READONLY needs KVM_CAP_READONLY_MEM; GUEST_MEMFD excludes LOG_DIRTY_PAGES and "
    "READONLY; an unknown flag is EINVAL",
    "api.rst 4.35, 4.140; check_memory_region_flags",
)
SIZE_ALIGNED = source(
    "size-aligned",
    "memory_size is a multiple of the page size, else EINVAL",
    "__kvm_set_memory_region",
)
GPA_ALIGNED = source(
    "gpa-aligned",
    "guest_phys_addr is a multiple of the page size, else EINVAL",
    "__kvm_set_memory_region",
)
HVA_USER = documented(
    "hva-user",
    "userspace_addr is page aligned user memory for the whole size, else EINVAL, on deletion too",
    "api.rst 4.35; fa3d315a4ce2, 09d952c971a5 (CVE-2013-1943)",
)
GUEST_MEMFD_OFFSET = source(
    "guest-memfd-offset",
    "guest_memfd_offset is page aligned and does not wrap, else EINVAL",
    "__kvm_set_memory_region",
)
ADDRESS_SPACE_RANGE = documented(
    "address-space-range",
    "the high 16 bits of slot are below KVM_CAP_MULTI_ADDRESS_SPACE (1 if absent)",
)
GPA_WRAPS = source(
    "gpa-wraps",
    "guest_phys_addr + memory_size stays below 2^64, else EINVAL",
    "__kvm_set_memory_region",
)
TOO_MANY_PAGES = source(
    "too-many-pages",
    "a slot has at most 2^31 - 1 pages, else EINVAL",
    "__kvm_set_memory_region: KVM_MEM_MAX_NR_PAGES",
)
DELETE_ABSENT = source("delete-absent", "deleting an absent slot is EINVAL", "f0736cf0550b")
DELETE = documented(
    "delete",
    "memory_size 0 deletes the slot; gpa, hva and valid flags are otherwise ignored",
    "api.rst 4.35; e0135a104c52",
)
GUEST_MEMFD_IMMUTABLE = source(
    "guest-memfd-immutable",
    "a slot with guest_memfd can only be deleted",
    "9935df5333aa",
)
IMMUTABLE = documented(
    "immutable",
    "hva, size and the READONLY bit of a present slot cannot change, else EINVAL",
    "api.rst 4.35 (size, slot); 75d61fbcf563 (READONLY)",
)
MOVE = documented("move", "another guest_phys_addr moves the slot")
FLAGS_ONLY = documented("flags-only", "other flags alone change the slot in place")
NO_CHANGE = documented("no-change", "the same values again change nothing")
CREATE = documented("create", "an absent slot is created; userspace_addr 0 is legal")
OVERLAP = documented(
    "overlap",
    "a slot may not overlap another one of its address space, else EEXIST; adjacency and a "
    "move onto its own old place are fine",
    "api.rst 4.35; __kvm_set_memory_region",
)
GFN_LIMIT = source(
    "gfn-limit",
    "the last gfn lies within what the MMU maps, else EINVAL and nothing changed",
    "kvm_arch_prepare_memory_region: kvm_mmu_max_gfn",
)
NO_MEMORY = source(
    "no-memory",
    "a call whose allocation fails is ENOMEM and changes nothing",
    "kvm_set_memory_region, kvm_prepare_memory_region",
)


@dataclass(slots=True)
class GuestMemfd:
    """A guest_memfd in the model. ``vm`` is the number of the VM that it belongs to.

    ``mapping`` shows its pages to the host ("": none does yet); ``bindings`` are the pages bound to
    each slot, by the slot's 32-bit number.
    """

    size: int
    flags: int
    vm: int
    name: str = ""
    is_open: bool = True
    mapping: str = ""
    bindings: dict[int, range] = field(default_factory=dict)


@dataclass(slots=True)
class Memslot:
    """A slot in the model. ``dirty`` is None if LOG_DIRTY_PAGES is off.

    ``perhaps`` are pages that may be reported as dirty for a reason other than a certain write.
    ``memfd`` is what a slot with GUEST_MEMFD is bound to, from ``memfd_offset`` (bytes) on.
    """

    slot_id: int
    base_gfn: int
    npages: int
    userspace_addr: Hva
    flags: int
    dirty: set[int] | None = None
    perhaps: set[int] = field(default_factory=set)
    memfd: GuestMemfd | None = None
    memfd_offset: int = 0
    as_id: int = 0

    @property
    def number(self) -> int:
        """The slot's 32-bit number, as in calls and dirty rings."""
        return self.as_id << 16 | self.slot_id


class Decision(msgspec.Struct, frozen=True, gc=False):
    """A refusal (``errno`` is not 0), or what changes (None: nothing); and by which rule."""

    errno: int
    change: Change | None
    rule: Rule


Overlapping = Callable[[int, int, int], Memslot | None]
"""(base_gfn, npages, slot id to ignore) -> a slot in the way."""

Unbindable = Callable[[SetUserMemoryRegion2], Decision | None]
"""Returns why a new slot cannot bind the guest_memfd that the call names; None if it can."""


def refusal_by_argument(op: SetUserMemoryRegion, features: Features) -> Decision | None:
    """Return the refusal by the first check that fails on the arguments alone."""
    second_form = isinstance(op, SetUserMemoryRegion2)
    memfd_offset = op.guest_memfd_offset if isinstance(op, SetUserMemoryRegion2) else 0
    flags = op.flags & 0xFFFF_FFFF
    if op.caller == "forked-child":
        return _refuse(errno.EIO, FOREIGN_PROCESS)
    if second_form and not features.user_memory2:
        return _refuse(errno.ENOTTY, FIRST_FORM_FLAGS)
    if op.argument == "unreadable":
        return _refuse(errno.EFAULT, BAD_POINTER)
    if not second_form and flags & ~(LOG_DIRTY_PAGES | READONLY):
        return _refuse(errno.EINVAL, FIRST_FORM_FLAGS)
    if id_of(op.slot) >= features.nr_memslots:
        return _refuse(errno.EINVAL, SLOT_ID_RANGE)
    if flags and flags & ~valid_flags(flags, features):
        return _refuse(errno.EINVAL, FLAGS_VALID)
    if op.memory_size % PAGE_SIZE_BYTES:
        return _refuse(errno.EINVAL, SIZE_ALIGNED)
    if op.guest_phys_addr % PAGE_SIZE_BYTES:
        return _refuse(errno.EINVAL, GPA_ALIGNED)
    if not _is_aligned_user_range(op.userspace_addr, op.memory_size):
        return _refuse(errno.EINVAL, HVA_USER)
    if flags & GUEST_MEMFD and (
        memfd_offset % PAGE_SIZE_BYTES or memfd_offset + op.memory_size >= 1 << 64
    ):
        return _refuse(errno.EINVAL, GUEST_MEMFD_OFFSET)
    if as_id_of(op.slot) >= features.address_spaces:
        return _refuse(errno.EINVAL, ADDRESS_SPACE_RANGE)
    if op.guest_phys_addr + op.memory_size >= 1 << 64:
        return _refuse(errno.EINVAL, GPA_WRAPS)
    if pages_of(op.memory_size) > MAX_PAGES:
        return _refuse(errno.EINVAL, TOO_MANY_PAGES)
    return None


def valid_flags(flags: int, features: Features) -> int:
    """Return the flags that may be set together with ``flags``."""
    valid = LOG_DIRTY_PAGES
    if features.readonly_mem:
        valid |= READONLY
    if features.guest_memfd:
        valid |= GUEST_MEMFD
        if flags & GUEST_MEMFD:
            valid &= ~(LOG_DIRTY_PAGES | READONLY)
    return valid


def decide(
    op: SetUserMemoryRegion,
    hva: Hva,
    present: Memslot | None,
    overlapping: Overlapping,
    unbindable: Unbindable,
    features: Features,
) -> Decision:
    """Return what the kernel does with arguments that are valid by themselves.

    ``hva`` is the operation's userspace address in canonical form (`Backing.normal`).
    """
    if op.memory_size == 0:
        if present is None:
            return _refuse(errno.EINVAL, DELETE_ABSENT)
        return Decision(0, Change.DELETE, DELETE)
    change: Change | None = Change.CREATE
    rule = CREATE
    if present is not None:
        if present.flags & GUEST_MEMFD:
            return _refuse(errno.EINVAL, GUEST_MEMFD_IMMUTABLE)
        if not _same_but_for_place(op, hva, present):
            return _refuse(errno.EINVAL, IMMUTABLE)
        change, rule = _change_of(op, present)
    if change in (Change.CREATE, Change.MOVE):
        base_gfn, npages = pages_of(op.guest_phys_addr), pages_of(op.memory_size)
        if overlapping(base_gfn, npages, id_of(op.slot)) is not None:
            return _refuse(errno.EEXIST, OVERLAP)
        if op.flags & GUEST_MEMFD and isinstance(op, SetUserMemoryRegion2):
            refusal = unbindable(op)
            if refusal is not None:
                return refusal
        if base_gfn + npages - 1 > features.highest_gfn:
            return _refuse(errno.EINVAL, GFN_LIMIT)
    return Decision(0, change, rule)


def _change_of(op: SetUserMemoryRegion, present: Memslot) -> tuple[Change | None, Rule]:
    if pages_of(op.guest_phys_addr) != present.base_gfn:
        return Change.MOVE, MOVE
    if op.flags != present.flags:
        return Change.FLAGS_ONLY, FLAGS_ONLY
    return None, NO_CHANGE


def _same_but_for_place(op: SetUserMemoryRegion, hva: Hva, present: Memslot) -> bool:
    fixed = READONLY | GUEST_MEMFD
    return (
        hva == present.userspace_addr
        and pages_of(op.memory_size) == present.npages
        and not (op.flags ^ present.flags) & fixed
    )


def _is_aligned_user_range(hva: Hva, size_bytes: int) -> bool:
    if isinstance(hva, Place):
        return hva.offset % PAGE_SIZE_BYTES == 0
    return hva % PAGE_SIZE_BYTES == 0 and hva + size_bytes < KERNEL_HALF


def _refuse(number: int, rule: Rule) -> Decision:
    return Decision(number, None, rule)
