"""Two address spaces: in system management mode a vCPU sees as_id 1, and nothing else.

The guest's own slot is in both, and every survey reads both, so that a vCPU has always accessed
a gpa in each of them before anything changes.
"""

from collections.abc import Iterator
from dataclasses import replace

from vmm.catalogue._area import Area
from vmm.catalogue._build import (
    API,
    API_DIRTY,
    HUGE,
    NOWHERE,
    A,
    B,
    Slot,
    at,
    creates,
    read,
    write,
)
from vmm.catalogue._dirty import API_CLEAR, MANUAL, clear
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    SMM,
    AnyOperation,
    AsId,
    ChangeHostMemory,
    EnableCap,
    Execute,
    HarvestDirtyRing,
    HostWrite,
    NewVm,
    ResetDirtyRings,
    Scenario,
    Sweep,
)

_SMM = SMM << 16
_ONE = Slot(1, 0x100, at("a"), pages=2)
_TWIN = Slot(_SMM | 1, 0x100, at("b"), pages=2)
_SWITCHES = 6
_AHEAD = 6
"""The number of changes that one address space is ahead of the other, which then overtakes it."""
_HIGH_GFN = 0x140000  # from 5 GiB on, where the guest is in 64-bit mode


_spaces = Area(tags=("spaces",), source=API, needs=("smm",))


def _both(gfn: int) -> tuple[AnyOperation, AnyOperation]:
    """Read a page in both address spaces."""
    return read(gfn), read(gfn, as_id=SMM)


def _followed() -> Iterator[AnyOperation]:
    """Write to pages of both address spaces, let the host drop some, and read them."""
    places: tuple[tuple[int, AsId], ...] = ((0x100, 0), (0x108, SMM), (0x110, SMM), (0x118, 0))
    for gfn, as_id in places:
        yield from (write(gfn + page, gfn + page, 0x200, as_id=as_id) for page in range(4))
    yield ChangeHostMemory(at("a", 1), 2)
    yield ChangeHostMemory(at("b", 1), 6)
    for gfn, as_id in places:
        yield from (read(gfn + page, 0x200, as_id=as_id) for page in range(4))


_SLOTS = (
    _spaces(
        "spaces-at-one-gpa",
        "Slots of two address spaces may share gpas; each space reaches its own memory.",
        *creates(_ONE, _TWIN),
        *_both(0x100),
        _ONE.delete(),
        *_both(0x100),
        _TWIN.delete(),
        *_both(0x100),
    ),
    _spaces(
        "spaces-with-one-id",
        "One id names two slots: deletion in one address space leaves the slot in the other.",
        *creates(_ONE, _TWIN),
        _TWIN.delete(),
        _TWIN.delete(),
        _ONE.delete(),
        _TWIN.create(),
        _ONE.delete(),
    ),
    _spaces(
        "spaces-follow-host-memory",
        "Pages that the host drops read as zeros in each address space whose slots show them.",
        *creates(
            Slot(1, 0x100, at("a"), pages=4),
            Slot(_SMM | 1, 0x108, at("a"), pages=4),
            Slot(_SMM | 2, 0x110, at("b"), pages=4),
            Slot(3, 0x118, at("b", 4), pages=4),
        ),
        *(touch for _ in range(2) for touch in _followed()),
        source="kvm_mmu_notifier_invalidate_range_start",
        survey="none",
        needs=("sync_mmu",),
    ),
    # No survey, so that a vCPU goes to the other space with exactly these reads cached.
    _spaces(
        "spaces-counting-in-turn",
        "Each address space has its own generation: what a vCPU has cached in one is not used in "
        "the other, however often either has changed.",
        *(Slot(_SMM | 20 + n, 0x140 + n, at("b", n)).create() for n in range(_AHEAD)),
        *(
            operation
            for n in range(2 * _AHEAD)
            for operation in (
                Slot(20 + n, 0x120 + n, at("a", n % 8)).create(),
                *_both(0x120 + n),
                *_both(0x140 + n % _AHEAD),
            )
        ),
        source="kvm_swap_active_memslots, kvm_vcpu_gfn_to_memslot",
        survey="none",
    ),
    _spaces(
        "spaces-apart",
        "A slot only in as_id 1 is a hole outside system management mode.",
        _TWIN.create(),
        write(0x100, 7),
        write(0x100, 8, as_id=SMM),
        _TWIN.move(0x108),
        Slot(2, 0x100, at("a")).create(),
        Slot(2, 0x108, at("a")).create(),
    ),
    _spaces(
        "spaces-move-in-one",
        "A move in one address space leaves the other unchanged, and overlaps no slot of it.",
        *creates(_ONE, _TWIN),
        _TWIN.move(0x101),
        _ONE.move(0x101),
        _ONE.move(0x108),
        _TWIN.move(0x108),
    ),
    _spaces(
        "spaces-overlap-in-one",
        "Only slots of the same address space make an overlap EEXIST.",
        *creates(_ONE, _TWIN, Slot(_SMM | 2, 0x110, at("b", 4))),
        Slot(_SMM | 2, 0x101, at("b", 4)).create(),
        Slot(_SMM | 3, 0x101, at("b", 5)).create(),
        Slot(_SMM | 3, 0x102, at("b", 5)).create(),
        Slot(3, 0x110, at("a", 4)).create(),
        Slot(3, 0x101, at("a", 4)).create(),
    ),
    _spaces(
        "spaces-flags-in-one",
        "Flags belong to one address space: READONLY in the other stops no write here.",
        *creates(_ONE, Slot(_SMM | 1, 0x100, at("a"), 2, READONLY)),
        write(0x100, 9),
        write(0x100, 10, as_id=SMM),
        Slot(_SMM | 1, 0x100, at("a"), 2).create(),
        _ONE.change(READONLY),
        needs=("readonly_mem",),
    ),
    _spaces(
        "spaces-over-the-same-memory",
        "Slots of both address spaces may show the same memory: each reads what the other writes.",
        *creates(_ONE, Slot(_SMM | 2, 0x100, at("a"), 2), Slot(_SMM | 3, 0x108, at("a"), 2)),
        write(0x100, 0x11111111),
        *_both(0x100),
        write(0x108, 0x22222222, as_id=SMM),
        *_both(0x100),
        _ONE.delete(),
        HostWrite(at("a"), 0x33333333),
        read(0x100, 0, as_id=SMM),
        read(0x108, 0, as_id=SMM),
    ),
    _spaces(
        "spaces-crossing-over",
        "Slots of two address spaces move to each other's gpas.",
        _ONE.create(),
        Slot(_SMM | 1, 0x108, at("b"), 2).create(),
        _ONE.move(0x108),
        _TWIN.create(),
        _ONE.move(0x100),
        Slot(_SMM | 1, 0x108, at("b"), 2).create(),
    ),
    _spaces(
        "spaces-without-host-memory",
        "A slot is reached even if the other address space's slot at its gpa has no host memory.",
        *creates(_ONE, Slot(_SMM | 1, 0x100, at("nowhere"), 2)),
        *_both(0x100),
        Slot(_SMM | 1, 0, 0).delete(),
        _TWIN.create(),
        *_both(0x100),
        survey="none",
        mappings=(A, B, NOWHERE),
    ),
    _spaces(
        "spaces-above-4-gib",
        "Above 4 GiB, too, each address space reaches its own memory.",
        *creates(Slot(1, _HIGH_GFN, at("a"), 2), Slot(_SMM | 1, _HIGH_GFN, at("b"), 2)),
        Slot(1, _HIGH_GFN + 1, at("a"), 2).create(),
        Slot(_SMM | 1, 0, 0).delete(),
        *_both(_HIGH_GFN + 1),
    ),
)

_MODES = (
    _spaces(
        "spaces-execute-on-huge-pages",
        "Code in a huge page that only as_id 1 has is executed there, and as_id 0 has a hole.",
        Slot(_SMM | 1, 0x200, at("huge"), pages=512).create(),
        *(Execute((0x200 + page) * PAGE_SIZE_BYTES, as_id=SMM) for page in (0, 1, 511)),
        *_both(0x200),
        Slot(_SMM | 1, 0x201, at("huge"), pages=512).create(),
        *(Execute((0x201 + page) * PAGE_SIZE_BYTES, as_id=SMM) for page in (0, 1, 511)),
        *_both(0x200),
        source="817fa998362d; kvm_recover_nx_huge_pages",
        survey="none",
        mappings=(HUGE,),
    ),
    _spaces(
        "spaces-switched-between-changes",
        "A vCPU that enters and leaves SMM sees each change in the address space that was "
        "changed, and in no other.",
        *(
            operation
            for turn in range(_SWITCHES)
            for operation in (
                _ONE.move(0x100 + turn % 2),
                *_both(0x101),
                _TWIN.move(0x101 - turn % 2),
                *reversed(_both(0x101)),
                *_both(0x100),
            )
        ),
        survey="none",
    ),
    _spaces(
        "spaces-memory-over-remembered-mmio",
        "A gpa that is cached as MMIO in one address space is memory in the other.",
        _ONE.create(),
        *_both(0x100) * 3,
        _ONE.delete(),
        _TWIN.create(),
        *_both(0x100) * 3,
        _ONE.create(),
        _TWIN.delete(),
        *_both(0x100) * 3,
        survey="none",
    ),
    _spaces(
        "spaces-executed",
        "Instructions come from the address space that the vCPU sees.",
        *creates(_ONE, _TWIN),
        *(Execute(0x100 * PAGE_SIZE_BYTES, as_id=as_id) for as_id in (0, SMM, 0)),
        _ONE.delete(),
        *(Execute(0x100 * PAGE_SIZE_BYTES, as_id=as_id) for as_id in (SMM, 0, SMM)),
        *_both(0x100),
        survey="none",
    ),
    _spaces(
        "spaces-swept",
        "A string instruction across a slot's end stays within its address space.",
        *creates(_ONE, Slot(_SMM | 1, 0x101, at("b"), 2)),
        *(
            Sweep(0x101FE0, 16, access, value=0x5A5A5A5A, as_id=as_id)
            for access in ("read", "write", "read")
            for as_id in (0, SMM)
        ),
        survey="none",
    ),
    _spaces(
        "spaces-seen-by-two-vcpus",
        "Of two vCPUs, one may be in system management mode and the other not.",
        *creates(_ONE, _TWIN),
        read(0x100, as_id=SMM),
        read(0x100, vcpu=1),
        _TWIN.move(0x101),
        read(0x101, as_id=SMM),
        read(0x101, vcpu=1),
        write(0x101, 5, as_id=SMM),
        write(0x101, 6, vcpu=1),
        _ONE.delete(),
        read(0x101, as_id=SMM),
        read(0x101, vcpu=1),
        vcpus=2,
    ),
    _spaces(
        "spaces-of-the-next-vm",
        "The next VM has no slots of as_id 1, and nothing cached from there.",
        *creates(_ONE, _TWIN),
        *_both(0x100),
        NewVm(),
        *_both(0x100),
        _TWIN.create(),
        *_both(0x100),
    ),
)

_LOGGED = Slot(1, 0x100, at("a"), 4, LOG_DIRTY_PAGES)
_LOGGED_TWIN = Slot(_SMM | 1, 0x100, at("a"), 4, LOG_DIRTY_PAGES)

_DIRTY = (
    _spaces(
        "spaces-dirty-log-of-one",
        "A write is logged only in the slot that it went through, not in others on that memory.",
        *creates(_LOGGED, _LOGGED_TWIN),
        write(0x101, 5),
        _LOGGED_TWIN.log(),
        _LOGGED.log(),
        write(0x102, 6, as_id=SMM),
        _LOGGED.log(),
        _LOGGED_TWIN.log(),
        write(0x101, 7),
        write(0x102, 8, as_id=SMM),
        write(0x103, 9),
        _LOGGED.delete(),
        _LOGGED_TWIN.log(),
        _LOGGED.log(),
        source=API_DIRTY,
        survey="read",
    ),
    _spaces(
        "spaces-dirty-log-switched-on",
        "A log that is switched on tracks pages written before, in its own address space.",
        *creates(replace(_LOGGED, flags=0), replace(_LOGGED_TWIN, flags=0, hva=at("b"))),
        *(write(0x100 + page, page + 1, as_id=SMM) for page in range(4)),
        replace(_LOGGED_TWIN, hva=at("b")).create(),
        *(write(0x100 + page, page + 5, as_id=SMM) for page in range(4)),
        replace(_LOGGED_TWIN, hva=at("b")).log(),
        write(0x103, 9, as_id=SMM),
        replace(_LOGGED_TWIN, hva=at("b")).log(),
        *(write(0x100 + page, page + 1) for page in range(4)),
        _LOGGED.create(),
        *(write(0x100 + page, page + 9) for page in range(4)),
        _LOGGED.log(),
        source=API_DIRTY,
        survey="read",
    ),
    _spaces(
        "spaces-dirty-log-again",
        "A page is logged again once it was cleared in its own address space, whatever the other "
        "one does.",
        *creates(_LOGGED, _LOGGED_TWIN),
        *(
            operation
            for turn in range(3)
            for operation in (
                write(0x100, turn),
                write(0x100, turn, as_id=SMM),
                _LOGGED.log(),
                write(0x100, turn, as_id=SMM),
                _LOGGED_TWIN.log(),
                _LOGGED.log(),
            )
        ),
        _LOGGED_TWIN.move(0x102),
        write(0x102, 1, as_id=SMM),
        write(0x102, 1),
        _LOGGED_TWIN.log(),
        _LOGGED.log(),
        source=API_DIRTY,
        survey="none",
    ),
    _spaces(
        "spaces-dirty-log-cleared-by-hand",
        "KVM_CLEAR_DIRTY_LOG clears pages only in the slot's own address space.",
        MANUAL,
        *creates(_LOGGED, _LOGGED_TWIN),
        *(write(0x101, 5, as_id=as_id) for as_id in (0, SMM)),
        *(op for slot in (_LOGGED_TWIN, _LOGGED) for op in (slot.log(), clear(slot, 0, 4))),
        *(write(0x101, 6, as_id=SMM), clear(_LOGGED, 0, 4)),
        *(_LOGGED.log(), _LOGGED_TWIN.log(), _LOGGED.delete(), clear(_LOGGED_TWIN, 0, 4)),
        _LOGGED_TWIN.log(),
        source=API_CLEAR,
        survey="none",
        needs=("manual_dirty_log",),
    ),
    _spaces(
        "spaces-dirty-ring",
        "A dirty ring names the address space with the slot.",
        EnableCap("DIRTY_LOG_RING", 1 << 16),
        *creates(_LOGGED, _LOGGED_TWIN),
        write(0x101, 5),
        write(0x102, 6, as_id=SMM),
        HarvestDirtyRing(),
        ResetDirtyRings(),
        write(0x102, 7, as_id=SMM),
        write(0x101, 8, as_id=SMM),
        HarvestDirtyRing(),
        ResetDirtyRings(),
        source="api.rst KVM_CAP_DIRTY_LOG_RING",
        survey="none",
        needs=("dirty_ring_bytes",),
    ),
)


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return all scenarios of address spaces; one uses the kernel's last id."""
    return (*_SLOTS, *_MODES, *_DIRTY, _with_the_last_id(features.nr_memslots))


def _with_the_last_id(nr_memslots: int) -> Scenario:
    last = Slot(nr_memslots - 1, 0x100, at("a"), 2)
    twin = Slot(_SMM | nr_memslots - 1, 0x101, at("b"), 2)
    return _spaces(
        "spaces-with-the-last-id",
        "Each address space has the same slot ids, up to the last.",
        *creates(last, twin),
        Slot(_SMM | nr_memslots, 0x110, at("b")).create(),
        twin.move(0x108),
        last.delete(),
        twin.delete(),
        source="api.rst 4.35; KVM_CAP_NR_MEMSLOTS",
    )
