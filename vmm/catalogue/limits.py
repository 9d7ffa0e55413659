"""Refusals at the limits of slot ids, address spaces, sizes and gfns."""

from vmm.catalogue._build import API, A, B, Slot, at, but, creates, read, write
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    ClearDirtyLog,
    EnableCap,
    GetDirtyLog,
    Scenario,
    SetNrMmuPages,
)

_SET = "__kvm_set_memory_region"

_LIVE = Slot(1, 0x100, at("a"), pages=2)
_GFN = 0x103
_HIGH_GPA = 1 << 33
_TOP = 1 << 64
_LOGGED = Slot(1, 0x100, at("a"), 2, LOG_DIRTY_PAGES)
_READ_ONLY = Slot(2, 0x104, at("b"), 2, READONLY)
_EMPTY = Slot(3, 0x108, 0, 1, LOG_DIRTY_PAGES)
_TOO_MANY = (1 << 31, (1 << 31) + 1, 1 << 32)
_FLAGGED = (_LOGGED, _READ_ONLY)


def _limit(
    name: str, why: str, source: str, *operations: AnyOperation, needs: tuple[str, ...] = ()
) -> Scenario:
    return Scenario(
        name=name,
        why=why,
        source=source,
        tags=("errno", "limit"),
        needs=needs,
        mappings=(A, B),
        operations=(_LIVE.create(), *operations),
    )


_MANY = tuple(
    Slot(n, 0x200 * n, at("a", n % A.pages), 1, LOG_DIRTY_PAGES if n % 4 else 0)
    for n in range(1, 81)
)
"""Slots 2 MiB apart: each takes a page table of its own, which are more than 64."""


def _used(value: int) -> tuple[AnyOperation, ...]:
    """Write a word through each of the slots, and read all of them."""
    return (
        *(write(slot.gfn, value + slot.slot, 0x100 + 4 * slot.slot) for slot in _MANY),
        *(read(slot.gfn, 0x100 + 4 * slot.slot) for slot in _MANY),
    )


_PAGE_TABLES = (
    _limit(
        "refuse-few-page-tables-of-kvm",
        "KVM may have 64 page tables or more to shadow those of guests: fewer are EINVAL.",
        "kvm_vm_ioctl_set_nr_mmu_pages: KVM_MIN_ALLOC_MMU_PAGES",
        *(SetNrMmuPages(pages) for pages in (0, 1, 63, 64, 63, 65, (1 << 32) - 1)),
        Slot(2, _GFN, at("b"), pages=2).create(),
    ),
    Scenario(
        name="few-page-tables-of-kvm-for-many-slots",
        why="A guest that takes more page tables than KVM may have reaches every slot, and what it "
        "writes is logged.",
        source="kvm_mmu_change_mmu_pages, make_mmu_pages_available",
        tags=("limit", "dirty", "slow"),
        mappings=(A, B),
        survey="none",
        operations=(
            SetNrMmuPages(64),
            *creates(*_MANY),
            *_used(0x1000),
            *(slot.log() for slot in _MANY[::5]),
            *_used(0x2000),
            SetNrMmuPages(100),
            *(slot.log() for slot in _MANY[1::5]),
            SetNrMmuPages(64),
            *_used(0x3000),
            *(slot.log() for slot in _MANY[::5]),
            *(slot.delete() for slot in _MANY[::2]),
            *(read(slot.gfn) for slot in _MANY),
        ),
    ),
)


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the refusals around the limits that a kernel announces, and around wrapping sums."""
    return (
        *_slot_numbers(features.nr_memslots, features.address_spaces),
        *_arithmetic(),
        *_last_gfn(features.last_gfn),
        *_PAGE_TABLES,
    )


def _slot_numbers(nr_memslots: int, address_spaces: int) -> tuple[Scenario, ...]:
    beyond = address_spaces << 16
    within = (address_spaces - 1) << 16
    bits = [bit for bit in range(16) if 1 << bit >= nr_memslots]
    return (
        _limit(
            "refuse-a-slot-id-beyond-the-last",
            "Ids are below KVM_CAP_NR_MEMSLOTS; those above are the kernel's own.",
            API,
            Slot(nr_memslots, _GFN, at("b")).create(),
            Slot(nr_memslots, _GFN, at("b")).delete(),
            Slot(0xFFFF, _GFN, at("b")).create(),
            Slot(0xFFFF, _GFN, at("b")).delete(),
            # Only one bit beyond an id that is free, and beyond that of a slot.
            *(Slot(1 << bit | 3, _GFN, at("b")).create() for bit in bits),
            *(Slot(1 << bit | 1, _GFN, at("b")).delete() for bit in bits),
            Slot(nr_memslots - 1, _GFN, at("b")).create(),
        ),
        _limit(
            "refuse-an-address-space-beyond-the-last",
            "The upper half of slot is below KVM_CAP_MULTI_ADDRESS_SPACE, 1 if that is absent.",
            API,
            Slot(beyond | 2, _GFN, at("b")).create(),
            Slot(beyond | 1, _GFN, at("b")).delete(),
            Slot(0xFFFF_0001, _LIVE.gfn, at("a"), pages=2).create(),
            Slot(within | 2, _GFN, at("b")).create(),
        ),
        _limit(
            "refuse-a-dirty-log-of-no-slot",
            "KVM_GET_DIRTY_LOG takes the same slot ids and address spaces: EINVAL beyond them.",
            "kvm_get_dirty_log_protect",
            GetDirtyLog(nr_memslots - 1),
            GetDirtyLog(nr_memslots),
            GetDirtyLog(0xFFFF),
            GetDirtyLog(beyond | 1),
            GetDirtyLog(0xFFFF_0001),
        ),
        _limit(
            "refuse-to-clear-the-log-of-no-slot",
            "KVM_CLEAR_DIRTY_LOG takes the same slot ids and address spaces: EINVAL beyond them.",
            "kvm_clear_dirty_log_protect",
            EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 1),
            ClearDirtyLog(nr_memslots - 1, 0, 64),
            ClearDirtyLog(nr_memslots, 0, 64),
            ClearDirtyLog(beyond | 1, 0, 64),
            needs=("manual_dirty_log",),
        ),
    )


def _arithmetic() -> tuple[Scenario, ...]:
    new = Slot(2, _GFN, at("b"), pages=2).create()
    # No memory backs these: the kernel must refuse them before it would use the memory.
    endless = but(Slot(2, 0, 0).create(), guest_phys_addr=_HIGH_GPA)
    return (
        _limit(
            "refuse-a-gpa-range-that-wraps",
            "A slot, new or moved, ends below 2^64; a slot that ends exactly there has wrapped.",
            _SET,
            but(new, guest_phys_addr=_TOP - 2 * PAGE_SIZE_BYTES),
            but(new, guest_phys_addr=_TOP - PAGE_SIZE_BYTES),
            but(_LIVE.create(), guest_phys_addr=_TOP - 2 * PAGE_SIZE_BYTES),
            but(_LIVE.create(), guest_phys_addr=_TOP - PAGE_SIZE_BYTES),
            # This one does not wrap, but is beyond the last gfn of any MMU.
            but(new, guest_phys_addr=_TOP - 3 * PAGE_SIZE_BYTES),
            new,
        ),
        _limit(
            "refuse-too-many-pages",
            "A slot has at most 2^31 - 1 pages, and the number of pages is not truncated to 32 "
            "bits.",
            "KVM_MEM_MAX_NR_PAGES",
            but(endless, memory_size=(1 << 31) * PAGE_SIZE_BYTES),
            but(endless, memory_size=((1 << 32) + 1) * PAGE_SIZE_BYTES),
            but(endless, memory_size=1 << 63),
            # The low 32 bits of these sizes in pages are the slot's own size, and 0.
            but(
                _LIVE.create(),
                guest_phys_addr=_HIGH_GPA,
                memory_size=((1 << 32) + 2) * PAGE_SIZE_BYTES,
            ),
            but(_LIVE.create(), guest_phys_addr=_HIGH_GPA, memory_size=1 << 44),
            # From address 0 on, so many pages are user addresses: only their number is wrong.
            _EMPTY.create(),
            *(but(_EMPTY.create(), memory_size=pages * PAGE_SIZE_BYTES) for pages in _TOO_MANY),
            _EMPTY.log(),
            _EMPTY.delete(),
            # Others are in the way, too: that is looked at later.
            *(
                but(_EMPTY.create(), guest_phys_addr=0, memory_size=pages * PAGE_SIZE_BYTES)
                for pages in _TOO_MANY
            ),
        ),
    )


def _last_gfn(last_gfn: int) -> tuple[Scenario, ...]:
    return (
        _limit(
            "refuse-a-gfn-beyond-the-last",
            "A slot must not extend beyond the last gfn that the MMU maps.",
            "kvm_arch_prepare_memory_region: kvm_mmu_max_gfn",
            Slot(2, last_gfn + 1, at("b")).create(),
            Slot(2, last_gfn, at("b"), pages=2).create(),
            # The refused calls left the id unused.
            Slot(2, last_gfn, at("b")).delete(),
            Slot(2, last_gfn - 1, at("b"), pages=2).create(),
        ),
        Scenario(
            name="refused-beyond-the-last-gfn-a-slot-keeps-its-flags",
            why="A slot that cannot move beyond the last gfn stays logged, with its log, or "
            "READONLY.",
            source="kvm_arch_prepare_memory_region: kvm_mmu_max_gfn",
            tags=("errno", "limit", "dirty", "readonly"),
            mappings=(A, B),
            needs=("readonly_mem",),
            survey="none",
            operations=(
                *creates(*_FLAGGED),
                write(_LOGGED.gfn, 1),
                *(slot.move(last_gfn) for slot in _FLAGGED),
                _LOGGED.log(),
                write(_LOGGED.gfn + 1, 2),
                *(slot.move(last_gfn + 1, slot.flags ^ LOG_DIRTY_PAGES) for slot in _FLAGGED),
                _LOGGED.log(),
                _READ_ONLY.log(),
                *(write(gfn, 3) for slot in _FLAGGED for gfn in (slot.gfn, slot.gfn + 1)),
                _LOGGED.log(),
                *(read(gfn) for slot in _FLAGGED for gfn in (slot.gfn, slot.gfn + 1)),
            ),
        ),
        Scenario(
            name="refuse-to-overlap-at-the-last-gfn",
            why="Overlap at the last gfn is EEXIST; it is checked before the limit.",
            source=_SET,
            tags=("errno", "limit", "overlap"),
            mappings=(A, B),
            operations=(
                *creates(Slot(1, last_gfn - 1, at("a"), pages=2)),
                Slot(2, last_gfn, at("b")).create(),
                Slot(2, last_gfn, at("b"), pages=2).create(),
                Slot(2, last_gfn - 2, at("b")).create(),
            ),
        ),
    )
