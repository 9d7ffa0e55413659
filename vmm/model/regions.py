"""What KVM_SET_USER_MEMORY_REGION does: its checks in order, and the kind of change."""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from vmm.model.array import Change
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
from vmm.scenario.slots import KERNEL_HALF, MAX_PAGES, USER_END, as_id_of, id_of


@dataclass(slots=True)
class GuestMemfd:
    """A guest_memfd as the model knows it. ``vm`` is the number of the VM that it belongs to.

    ``mapping`` shows its pages to the host ("": none does yet); ``bindings`` are the pages that
    slots hold, by the slot's 32-bit number.
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
    """A slot as the model knows it. ``dirty`` is None where LOG_DIRTY_PAGES is off.

    ``perhaps`` are pages that may be reported as dirty, for a reason that is no write.
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
        """The slot's 32-bit number, as calls and dirty rings have it."""
        return self.as_id << 16 | self.slot_id


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """A refusal (``errno`` is not 0), or what changes (None: nothing); and by which rule."""

    errno: int
    change: Change | None
    rule: str


Overlapping = Callable[[int, int, int], Memslot | None]
"""(base_gfn, npages, slot id to leave out) -> a slot in the way."""

Unbindable = Callable[[SetUserMemoryRegion2], Verdict | None]
"""Why a new slot cannot be bound to the guest_memfd that the call names."""


def refusal_by_argument(op: SetUserMemoryRegion, features: Features) -> Verdict | None:
    """Return the refusal that depends on the arguments alone, by the first check that fails."""
    second_form = isinstance(op, SetUserMemoryRegion2)
    memfd_offset = op.guest_memfd_offset if isinstance(op, SetUserMemoryRegion2) else 0
    flags = op.flags & 0xFFFF_FFFF
    if op.caller == "forked-child":
        return _refuse(errno.EIO, "foreign-process")
    if second_form and not features.user_memory2:
        return _refuse(errno.ENOTTY, "first-form-flags")
    if op.argument == "unreadable":
        return _refuse(errno.EFAULT, "bad-pointer")
    if not second_form and flags & ~(LOG_DIRTY_PAGES | READONLY):
        return _refuse(errno.EINVAL, "first-form-flags")
    if id_of(op.slot) >= features.nr_memslots:
        return _refuse(errno.EINVAL, "slot-id-range")
    if flags and flags & ~valid_flags(flags, features):
        return _refuse(errno.EINVAL, "flags-valid")
    if op.memory_size % PAGE_SIZE_BYTES:
        return _refuse(errno.EINVAL, "size-aligned")
    if op.guest_phys_addr % PAGE_SIZE_BYTES:
        return _refuse(errno.EINVAL, "gpa-aligned")
    if not _is_aligned_user_range(op.userspace_addr, op.memory_size):
        return _refuse(errno.EINVAL, "hva-user")
    if flags & GUEST_MEMFD and (
        memfd_offset % PAGE_SIZE_BYTES or memfd_offset + op.memory_size >= 1 << 64
    ):
        return _refuse(errno.EINVAL, "guest-memfd-offset")
    if as_id_of(op.slot) >= features.address_spaces:
        return _refuse(errno.EINVAL, "address-space-range")
    if op.guest_phys_addr + op.memory_size >= 1 << 64:
        return _refuse(errno.EINVAL, "gpa-wraps")
    if pages_of(op.memory_size) > MAX_PAGES:
        return _refuse(errno.EINVAL, "too-many-pages")
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


def is_noncanonical(hva: Hva) -> bool:
    """Return whether kernels differ on this address: between user addresses and 2^63."""
    return isinstance(hva, int) and USER_END <= hva < KERNEL_HALF


def decide(
    op: SetUserMemoryRegion,
    hva: Hva,
    present: Memslot | None,
    overlapping: Overlapping,
    unbindable: Unbindable,
    features: Features,
) -> Verdict:
    """Return what the kernel does with arguments that are valid in themselves.

    ``hva`` is the operation's userspace address in the form in which slots keep theirs.
    """
    if op.memory_size == 0:
        if present is None:
            return _refuse(errno.EINVAL, "delete-absent")
        return Verdict(0, Change.DELETE, "delete")
    change: Change | None = Change.CREATE
    rule = "create"
    if present is not None:
        if present.flags & GUEST_MEMFD:
            return _refuse(errno.EINVAL, "guest-memfd-immutable")
        if not _same_but_for_place(op, hva, present):
            return _refuse(errno.EINVAL, "immutable")
        change, rule = _change_of(op, present)
    if change in (Change.CREATE, Change.MOVE):
        base_gfn, npages = pages_of(op.guest_phys_addr), pages_of(op.memory_size)
        if overlapping(base_gfn, npages, id_of(op.slot)) is not None:
            return _refuse(errno.EEXIST, "overlap")
        if op.flags & GUEST_MEMFD and isinstance(op, SetUserMemoryRegion2):
            refusal = unbindable(op)
            if refusal is not None:
                return refusal
        if base_gfn + npages - 1 > features.last_gfn:
            return _refuse(errno.EINVAL, "gfn-limit")
    return Verdict(0, change, rule)


def _change_of(op: SetUserMemoryRegion, present: Memslot) -> tuple[Change | None, str]:
    if pages_of(op.guest_phys_addr) != present.base_gfn:
        return Change.MOVE, "move"
    if op.flags != present.flags:
        return Change.FLAGS_ONLY, "flags-only"
    return None, "no-change"


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


def _refuse(number: int, rule: str) -> Verdict:
    return Verdict(number, None, rule)
