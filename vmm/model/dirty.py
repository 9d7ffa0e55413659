"""Which pages are dirty: bitmaps with a bit for each page, and a ring for each vCPU.

A kernel that maps a page for a guest's read may map it writable at once, and then logs it
(``make_spte``; ``Features.reads_make_dirty``). For the model such a page is "perhaps" dirty.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from kvm_abi.uapi import DirtyLogManual
from vmm.model.allowed import Allowed
from vmm.model.array import MemslotArray
from vmm.model.regions import Memslot
from vmm.model.rings import RING_SIZE, RingState, ring_refusal
from vmm.model.rule import Rule, documented, source
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, DirtyPages, Done, Refused
from vmm.scenario.operations import LOG_DIRTY_PAGES, ClearDirtyLog, EnableCap, GetDirtyLog
from vmm.scenario.slots import as_id_of, id_of

DIRTY_EXACT = documented(
    "dirty-exact",
    "the dirty log names the pages that the guest wrote since they were cleared, and no other, "
    "except where the first read maps a page writable (make_spte)",
    "api.rst 4.8",
)
DIRTY_ABSENT = documented(
    "dirty-absent",
    "the dirty log of an absent slot, or one without LOG_DIRTY_PAGES, is ENOENT",
    "api.rst 4.8; kvm_get_dirty_log_protect",
)
DIRTY_SLOT_RANGE = source(
    "dirty-slot-range",
    "a bad as_id or slot id is EINVAL",
    "kvm_get_dirty_log_protect",
)
DIRTY_BAD_POINTER = source(
    "dirty-bad-pointer",
    "an unwritable bitmap is EFAULT",
    "kvm_get_dirty_log_protect",
)
DIRTY_RING_ONLY = source(
    "dirty-ring-only",
    "if only a dirty ring is enabled, the dirty log is ENXIO",
    "kvm_use_dirty_bitmap",
)
CLEAR = documented(
    "clear",
    "KVM_CLEAR_DIRTY_LOG clears the pages whose bits are set, and no other",
    "api.rst 4.117",
)
CLEAR_KNOWN = source(
    "clear-known",
    "KVM_CLEAR_DIRTY_LOG comes with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
    "2a31b9db1535",
)
CLEAR_FIRST_PAGE = documented(
    "clear-first-page",
    "first_page is a multiple of 64, else EINVAL",
    "api.rst 4.117",
)
CLEAR_RANGE = documented(
    "clear-range",
    "what is cleared lies within the slot, and num_pages is a multiple of 64 short of the "
    "slot's end, else EINVAL",
    "api.rst 4.117; 76d58e0f07ec, 98938aa8edd6",
)
CLEAR_BAD_POINTER = source(
    "clear-bad-pointer",
    "an unreadable bitmap is EFAULT, and nothing is cleared",
    "kvm_clear_dirty_log_protect",
)
CAP_KNOWN = source(
    "cap-known",
    "a capability that the kernel lacks cannot be enabled: EINVAL",
    "kvm_vm_ioctl_enable_cap",
)
CAP_FLAGS = documented(
    "cap-flags",
    "the flags of KVM_ENABLE_CAP have to be 0, else EINVAL; that of a dirty ring ignores them",
    "api.rst 4.37 KVM_ENABLE_CAP; kvm_vm_ioctl_enable_cap_generic",
)
MANUAL_PROTECT = documented(
    "manual-protect",
    "MANUAL_PROTECT_ENABLE leaves pages dirty until they are cleared; INITIALLY_SET, which "
    "needs it, begins a log with every page; other bits are EINVAL",
    "api.rst KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
)
QUIRKS = documented(
    "quirks",
    "KVM_CAP_DISABLE_QUIRKS2 accepts the quirks that KVM_CHECK_EXTENSION names, else EINVAL",
    "api.rst KVM_CAP_DISABLE_QUIRKS2",
)
RING_BEFORE_VCPUS = documented(
    "ring-before-vcpus",
    "the dirty ring is enabled once, before any vCPU exists, else EINVAL",
    "api.rst KVM_CAP_DIRTY_LOG_RING",
)


MANUAL_PROTECT_ENABLE = int(DirtyLogManual.MANUAL_PROTECT_ENABLE)
INITIALLY_SET = int(DirtyLogManual.INITIALLY_SET)

_WORD = 64
"""Pages in one word of the bitmap: KVM copies and clears whole words."""


@dataclass(slots=True)
class Tracking:
    """How one VM tracks dirty pages.

    ``manual`` is the argument that enabled KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; ``ring`` is None
    while there is none; ``vcpus`` are those that exist.
    """

    spaces: tuple[MemslotArray[Memslot], ...]
    features: Features
    manual: int = 0
    ring: RingState | None = None
    vcpus: set[int] = field(default_factory=set)

    def begin(self, new: Memslot, old: Memslot | None) -> None:
        """Give a new slot the log that its flags ask for, before it replaces the old one."""
        if not new.flags & LOG_DIRTY_PAGES:
            return
        if old is not None and old.dirty is not None:
            # An existing bitmap is kept (kvm_prepare_memory_region).
            new.dirty, new.perhaps = old.dirty, old.perhaps
            return
        both = MANUAL_PROTECT_ENABLE | INITIALLY_SET
        new.dirty = set(range(new.npages)) if self.manual & both == both else set()

    def changed(self, number: int, new: Memslot | None = None, old: Memslot | None = None) -> None:
        """Note that a slot changed: as a rule, none of its pages stays mapped writable."""
        if self.ring is not None:
            self.ring.protect_slot(number)
            if new is not None and self.leaves_unprotected(new, old):
                self.ring.leave_unprotected(number, new.npages)

    def leaves_unprotected(self, new: Memslot | None, old: Memslot | None) -> bool:
        """Whether logging begins without write-protecting pages (kvm_mmu_slot_apply_flags).

        With INITIALLY_SET every page counts as dirty, but no ring reports that.
        """
        return (
            self.ring is not None
            and bool(self.manual & INITIALLY_SET)
            and new is not None
            and old is not None
            and new.base_gfn == old.base_gfn
            and bool(new.flags & ~old.flags & LOG_DIRTY_PAGES)
        )

    def wrote(self, vcpu: int, slot: Memslot, page: int, times: int = 1) -> None:
        """Note a guest's write; it is reported at most ``times`` times."""
        if slot.dirty is None:
            return
        slot.dirty.add(page)
        if self.ring is not None:
            self.ring.wrote(vcpu, (slot.number, page), times)

    def read(self, vcpu: int, slot: Memslot, page: int) -> None:
        """Note a guest's read of a page that may be reported for it."""
        if slot.dirty is None:
            return
        slot.perhaps.add(page)
        if self.ring is not None:
            self.ring.read(vcpu, (slot.number, page))

    def kernel_wrote(self, vcpu: int, slot: Memslot, page: int, *, surely: bool) -> None:
        """Note a write by KVM itself for a vCPU, or, if not ``surely``, a possible one."""
        if slot.dirty is None:
            return
        (slot.dirty if surely else slot.perhaps).add(page)
        if self.ring is not None:
            self.ring.kernel_wrote(vcpu, (slot.number, page), surely=surely)

    def get(self, op: GetDirtyLog) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of KVM_GET_DIRTY_LOG."""
        slot = self._logged(op.slot)
        if isinstance(slot, Allowed):
            return (slot,)
        if op.bitmap == "unwritable":
            effect = _keep if self.manual else partial(_doubt, slot)
            return (_refused(errno.EFAULT, DIRTY_BAD_POINTER, effect),)
        dirty = slot.dirty or set()
        # KVM copies all words of the slot, and none beyond (kvm_dirty_bitmap_bytes).
        words = -(-slot.npages // _WORD)
        pages = DirtyPages(tuple(sorted(dirty)), tuple(sorted(slot.perhaps - dirty)), words)
        effect = _keep if self.manual else partial(_clear, slot, None)
        return (Allowed(pages, DIRTY_EXACT, effect),)

    def clear(self, op: ClearDirtyLog) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of KVM_CLEAR_DIRTY_LOG: its checks in the kernel's order."""
        if not self.features.manual_dirty_log:
            return (_refused(errno.ENOTTY, CLEAR_KNOWN),)
        slot = self._logged(op.slot, op.first_page)
        if isinstance(slot, Allowed):
            return (slot,)
        rest = slot.npages - op.first_page
        if rest < 0 or op.num_pages > rest or (op.num_pages < rest and op.num_pages % _WORD):
            return (_refused(errno.EINVAL, CLEAR_RANGE),)
        if op.bitmap == "unreadable" and op.num_pages:
            return (_refused(errno.EFAULT, CLEAR_BAD_POINTER),)
        within = range(op.first_page, op.first_page + op.num_pages)
        pages = set(within if op.pages == "all" else op.pages)
        return (Allowed(Done(), CLEAR, partial(_clear, slot, pages)),)

    def enable(self, op: EnableCap) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of KVM_ENABLE_CAP."""
        if not op.flags:
            return self._enable(op)
        refusal = _refused(errno.EINVAL, CAP_FLAGS)
        is_ring = op.cap in ("DIRTY_LOG_RING", "DIRTY_LOG_RING_ACQ_REL")
        return (refusal, *self._enable(op)) if is_ring else (refusal,)

    def _enable(self, op: EnableCap) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of KVM_ENABLE_CAP as far as its flags do not matter."""
        if op.cap == "MANUAL_DIRTY_LOG_PROTECT2":
            return (self._enable_manual(op.argument),)
        if op.cap == "DISABLE_QUIRKS2":
            return (self._disable_quirks(op.argument),)
        known = self.features.dirty_ring_bytes and (
            op.cap == "DIRTY_LOG_RING" or self.features.dirty_ring_acq_rel
        )
        if not known:
            return (_refused(errno.EINVAL, CAP_KNOWN),)
        size_bytes = op.argument & 0xFFFF_FFFF  # kvm_vm_ioctl_enable_dirty_log_ring takes a u32.
        refusal = ring_refusal(size_bytes, self.features)
        if refusal is not None:
            return (_refused(*refusal),)
        if self.ring is not None or self.vcpus:
            return (_refused(errno.EINVAL, RING_BEFORE_VCPUS),)
        return (Allowed(Done(), RING_SIZE, partial(self._enable_ring, size_bytes)),)

    def _enable_manual(self, options: int) -> Allowed:
        if not self.features.manual_dirty_log:
            return _refused(errno.EINVAL, CAP_KNOWN)
        valid = MANUAL_PROTECT_ENABLE
        if options & MANUAL_PROTECT_ENABLE and self.features.dirty_log_initially_set:
            valid |= INITIALLY_SET
        if options & ~valid:
            return _refused(errno.EINVAL, MANUAL_PROTECT)
        return Allowed(Done(), MANUAL_PROTECT, partial(self._set_manual, options))

    def _disable_quirks(self, quirks: int) -> Allowed:
        """Refuse anything but quirks of this kernel; disabling one changes no promise."""
        if quirks & ~self.features.quirks or not self.features.quirks:
            return _refused(errno.EINVAL, QUIRKS)
        return Allowed(Done(), QUIRKS)

    def _set_manual(self, options: int) -> None:
        self.manual = options

    def _enable_ring(self, size_bytes: int) -> None:
        self.ring = RingState(size_bytes, self.features)

    def _logged(self, number: int, first_page: int = 0) -> Memslot | Allowed:
        """Return the logged slot with a number, or the refusal."""
        if self.ring is not None:
            return _refused(errno.ENXIO, DIRTY_RING_ONLY)
        as_id, slot_id = as_id_of(number), id_of(number)
        if as_id >= self.features.address_spaces or slot_id >= self.features.nr_memslots:
            return _refused(errno.EINVAL, DIRTY_SLOT_RANGE)
        if first_page % _WORD:
            return _refused(errno.EINVAL, CLEAR_FIRST_PAGE)
        slot = self.spaces[as_id].get(slot_id)
        if slot is None or slot.dirty is None:
            return _refused(errno.ENOENT, DIRTY_ABSENT)
        return slot


def _keep() -> None:
    """Leave the log as it is."""


def _refused(number: int, rule: Rule, effect: Callable[[], None] = _keep) -> Allowed:
    outcome: AnyOutcome = Refused(number)
    return Allowed(outcome, rule, effect)


def _clear(slot: Memslot, pages: set[int] | None) -> None:
    """Clear these pages in the log; None: all."""
    if pages is None:
        slot.dirty, slot.perhaps = set(), set()
    elif slot.dirty is not None:
        slot.dirty -= pages
        slot.perhaps -= pages


def _doubt(slot: Memslot) -> None:
    """Make a log uncertain: KVM clears it before it copies it (kvm_get_dirty_log_protect)."""
    slot.perhaps |= slot.dirty or set()
    slot.dirty = set()
