"""Holes in guest_memfds: pages that the host punches out of a file are gone for every vCPU."""

from collections.abc import Iterator
from dataclasses import replace

from vmm.catalogue._area import Area
from vmm.catalogue._build import A, Slot, at, read, write
from vmm.catalogue._memfds import (
    CREATE,
    ONE,
    SHARED,
    SHOWN,
    bound,
    made,
    private_vm_scenario,
    to_private,
    to_shared,
    unbound,
)
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    UNSHARE_RANGE,
    ZERO_RANGE,
    AnyOperation,
    CloseGuestMemfd,
    HostWrite,
    Inspect,
    MapGuestMemfd,
    NewVm,
    PreFaultMemory,
    PunchGuestMemfd,
    Scenario,
    Sweep,
)

_PAGE = PAGE_SIZE_BYTES
_LARGEST = (1 << 63) - _PAGE

_SEEN = Slot(1, 0x100, at("shown"), pages=4)
_PART = Slot(2, 0x200, at("shown", 4), pages=2)
_SHOW = (made(flags=SHARED), MapGuestMemfd("g", "shown"))
_FOUR = range(0x100, 0x104)
_LOWEST = Slot(2, 0, at("a"), pages=2)
"""Its gfns are less than the pages of the file before its own."""


def _hole(page: int, pages: int = 1) -> PunchGuestMemfd:
    return PunchGuestMemfd("g", page * _PAGE, pages * _PAGE)


def _beside(slot: Slot, first: int) -> Iterator[AnyOperation]:
    """Punch what lies before and after a slot's part of the file, and use the slot after each."""
    end = first + slot.pages
    for turn, hole in enumerate((_hole(0, first), _hole(end), _hole(first - 1), _hole(first, 1))):
        yield from (write(slot.gfn + page, 0x0107_B000 + turn) for page in range(slot.pages))
        yield hole
        yield from (read(slot.gfn + page) for page in range(slot.pages))
    yield unbound(slot)
    yield bound(slot, first)
    yield from (read(slot.gfn + page) for page in range(slot.pages))


_shared = Area(
    tags=("guest-memfd", "mmap"),
    source=CREATE,
    needs=("user_memory2", "guest_memfd", "guest_memfd_shared"),
    mappings=(A, SHOWN),
    survey="none",
)
"""Makes scenarios with a guest_memfd that the host maps."""


def _hidden(
    name: str, why: str, *operations: AnyOperation, needs: tuple[str, ...] = ()
) -> Scenario:
    """Return a scenario with private memory, which the host punches, but cannot read."""
    return private_vm_scenario(
        name,
        why,
        *operations,
        source=CREATE,
        mappings=(A,),
        needs=needs,
        tags=("guest-memfd", "private"),
    )


_REFUSED = (
    PunchGuestMemfd("g", 0, _PAGE - 1),
    PunchGuestMemfd("g", 0, _PAGE + 1),
    PunchGuestMemfd("g", 1, _PAGE),
    PunchGuestMemfd("g", _PAGE - 1, 1),
    PunchGuestMemfd("g", 0, 0),
    PunchGuestMemfd("g", 0, 1 << 63),
    PunchGuestMemfd("g", 1 << 63, _PAGE),
    PunchGuestMemfd("g", _LARGEST, _PAGE),
    PunchGuestMemfd("g", _PAGE, _LARGEST),
    PunchGuestMemfd("g", 0, _PAGE, keep_size=False),
    PunchGuestMemfd("g", 1, 1, keep_size=False),
)

_ALLOCATES = (
    PunchGuestMemfd("g", 0, 2 * _PAGE, punch=False),
    PunchGuestMemfd("g", 0, 8 * _PAGE, punch=False),
    PunchGuestMemfd("g", 7 * _PAGE, _PAGE, punch=False),
    PunchGuestMemfd("g", 7 * _PAGE, 2 * _PAGE, punch=False),
    PunchGuestMemfd("g", 8 * _PAGE, _PAGE, punch=False),
    PunchGuestMemfd("g", _PAGE, _LARGEST - _PAGE, punch=False),
    PunchGuestMemfd("g", _PAGE, _LARGEST, punch=False),
    PunchGuestMemfd("g", 0, _PAGE, keep_size=False, punch=False),
    PunchGuestMemfd("g", 8 * _PAGE, _PAGE, keep_size=False, punch=False),
    PunchGuestMemfd("g", 1, _PAGE, punch=False),
    PunchGuestMemfd("g", 0, _PAGE + 1, punch=False),
    PunchGuestMemfd("g", 0, 0, punch=False),
)

_IN_OTHER_MODES = tuple(
    PunchGuestMemfd("g", first * _PAGE, _PAGE, keep_size, punch, others)
    for others in (ZERO_RANGE, UNSHARE_RANGE, 1 << 2, 1 << 3, 1 << 5, 1 << 30)
    for first in (1, 8)
    for keep_size, punch in ((True, False), (True, True), (False, False))
)

_SHARED_MEMORY = (
    _shared(
        "hole-refused",
        "Only holes of whole pages, with KEEP_SIZE, in an open file are accepted; a refusal "
        "changes nothing.",
        *_SHOW,
        bound(_SEEN),
        *(write(gfn, 0x0107_0000 + gfn) for gfn in _FOUR),
        *_REFUSED,
        *_IN_OTHER_MODES,
        *(read(gfn) for gfn in _FOUR),
        CloseGuestMemfd("g"),
        _hole(0),
        read(0x100),
        Inspect(),
        source="vfs_fallocate, kvm_gmem_fallocate",
        tags=("errno",),
    ),
    _shared(
        "hole-filled-again",
        "fallocate allocates pages up to the end of the file; existing pages stay.",
        *_SHOW,
        bound(_SEEN),
        *(write(gfn, 0x0107_0100 + gfn) for gfn in _FOUR),
        _hole(1),
        *_ALLOCATES,
        *(read(gfn) for gfn in _FOUR),
        Inspect(),
        source="kvm_gmem_allocate",
        tags=("errno",),
    ),
    _shared(
        "hole-in-shared-memory",
        "The guest reads zeros in the hole, where it had used pages; the pages around it stay.",
        *_SHOW,
        bound(_SEEN),
        *(write(gfn, 0x0107_1000 + gfn) for gfn in _FOUR),
        _hole(1, 2),
        *(read(gfn, offset) for gfn in _FOUR for offset in (0, 0x100, 0xFFC)),
        Inspect(),
        write(0x101, 0x0107_1001),
        HostWrite(at("shown", 2), 0x0107_1002),
        read(0x102, 0),
        Inspect(),
    ),
    _shared(
        "hole-that-the-host-sees-first",
        "The host's mapping shows zeros, too, and the guest reads what the host then writes.",
        *_SHOW,
        bound(_SEEN),
        read(0x103),
        _hole(3),
        Inspect(),
        HostWrite(at("shown", 3), 0x0107_2001),
        read(0x103, 0),
        read(0x103),
        write(0x103, 0x0107_2002),
        Inspect(),
    ),
    _shared(
        "hole-under-a-string-instruction",
        "A string instruction runs from a page into the hole after it, and out of it again.",
        *_SHOW,
        bound(_SEEN),
        Sweep(0x100 * _PAGE + 0xFF0, 8),
        Sweep(0x101 * _PAGE + 0xFF0, 8),
        _hole(1),
        Sweep(0x100 * _PAGE + 0xFF0, 8),
        Sweep(0x101 * _PAGE + 0xFF0, 8),
        Sweep(0x101 * _PAGE + 0xFF0, 8, "write", value=0x0107_3001),
        Inspect(),
    ),
    _shared(
        "hole-across-slots",
        "One hole takes pages from two slots, but not those before and after it.",
        *_SHOW,
        bound(_SEEN),
        bound(_PART, page=4),
        *(write(gfn, 0x0107_4000 + gfn) for gfn in (*_FOUR, 0x200, 0x201)),
        _hole(3, 2),
        *(read(gfn) for gfn in (*_FOUR, 0x200, 0x201)),
        Inspect(),
    ),
    _shared(
        "hole-that-two-vcpus-knew",
        "A hole drops what each vCPU has cached, whichever of them wrote the page.",
        *_SHOW,
        bound(_SEEN),
        write(0x100, 0x0107_5000),
        read(0x100, vcpu=1),
        write(0x101, 0x0107_5001, vcpu=1),
        read(0x101),
        _hole(0, 2),
        *(read(gfn, vcpu=vcpu) for gfn in (0x100, 0x101) for vcpu in (1, 0)),
        write(0x100, 0x0107_5002, vcpu=1),
        read(0x100),
        vcpus=2,
    ),
    _shared(
        "hole-where-no-slot-is-bound",
        "Pages that no slot is bound to are punched, too; a hole beyond the end of the file "
        "succeeds, without effect.",
        *_SHOW,
        _hole(7),
        Inspect(),
        bound(_SEEN),
        write(0x103, 0x0107_6000),
        _hole(4, 2),
        _hole(8),
        _hole(1 << 40),
        PunchGuestMemfd("g", 8 * _PAGE, _LARGEST - 8 * _PAGE),
        *(read(gfn) for gfn in _FOUR),
        bound(_PART, page=4),
        read(0x200),
        Inspect(),
    ),
    _shared(
        "hole-before-and-after-a-slot",
        "Holes that end where a slot's part of the file begins, and that begin where it ends, "
        "leave the slot as it is, and what is changed later is as ever.",
        *_SHOW,
        bound(_PART, page=4),
        *_beside(_PART, 4),
        Inspect(),
    ),
    _shared(
        "hole-between-delete-and-create",
        "A page that is punched after a deletion reads as zeros in the next slot.",
        *_SHOW,
        bound(_SEEN),
        *(write(gfn, 0x0107_7000 + gfn) for gfn in _FOUR),
        unbound(_SEEN),
        _hole(1),
        bound(replace(_SEEN, slot=3)),
        *(read(gfn) for gfn in _FOUR),
    ),
    _shared(
        "hole-as-large-as-the-file",
        "A hole from start to end, and beyond, takes everything, and it can be punched again.",
        *_SHOW,
        bound(_SEEN),
        *(write(gfn, 0x0107_8000 + gfn) for gfn in _FOUR),
        PunchGuestMemfd("g", 0, _LARGEST),
        *(read(gfn) for gfn in _FOUR),
        Inspect(),
        write(0x102, 0x0107_8001),
        _hole(0, 8),
        read(0x102),
        Inspect(),
    ),
    _shared(
        "hole-in-the-file-of-a-vm-that-is-gone",
        "A slot of the next VM on the host's mapping, as ordinary memory, follows the hole, too.",
        *_SHOW,
        bound(_SEEN),
        write(0x101, 0x0107_9000),
        NewVm(),
        _SEEN.create(),
        *(read(gfn) for gfn in _FOUR),
        _hole(1),
        *(read(gfn) for gfn in _FOUR),
        Inspect(),
        tags=("lifetime",),
    ),
)

_PRIVATE_MEMORY = (
    _hidden(
        "private-hole",
        "Punched private memory is zeros; the next page, and the shared one at that gpa, are kept.",
        made(),
        bound(ONE),
        write(ONE.gfn, 0x0107_A000),
        to_private(ONE.gfn, 2),
        write(ONE.gfn, 0x0107_A001),
        write(ONE.gfn + 1, 0x0107_A002),
        _hole(0),
        read(ONE.gfn),
        read(ONE.gfn + 1),
        write(ONE.gfn, 0x0107_A003),
        read(ONE.gfn),
        to_shared(ONE.gfn),
        read(ONE.gfn),
        Inspect(),
    ),
    _hidden(
        "private-hole-refused",
        "Only holes of whole pages, with KEEP_SIZE, are accepted; a refusal loses no private "
        "memory.",
        made(),
        bound(ONE),
        to_private(ONE.gfn, 2),
        write(ONE.gfn, 0x0107_A011),
        write(ONE.gfn + 1, 0x0107_A012),
        *_REFUSED,
        *_IN_OTHER_MODES,
        read(ONE.gfn),
        read(ONE.gfn + 1),
    ),
    _hidden(
        "private-pages-allocated",
        "fallocate allocates pages up to the end of the file, all zeros; existing pages stay.",
        made(),
        bound(ONE),
        to_private(ONE.gfn, 2),
        write(ONE.gfn, 0x0107_A021),
        write(ONE.gfn + 1, 0x0107_A022),
        # What is allocated next is likely the memory that this frees.
        _hole(1),
        *_ALLOCATES,
        read(ONE.gfn),
        read(ONE.gfn + 1),
        CloseGuestMemfd("g"),
        _ALLOCATES[0],
    ),
    _hidden(
        "private-hole-before-and-after-a-slot",
        "Holes that end where a slot's part of the file begins, and that begin where it ends, "
        "leave the slot as it is, and what is changed later is as ever.",
        made(),
        bound(ONE, page=3),
        to_private(ONE.gfn, ONE.pages),
        *_beside(ONE, 3),
    ),
    _hidden(
        "private-hole-beyond-an-offset",
        "Slots that begin within the file lose exactly the punched pages, at their own gfns, "
        "though the hole begins before, and after the slot is gone whose part is before theirs.",
        made(),
        bound(ONE, page=4),
        to_private(ONE.gfn, 2),
        write(ONE.gfn, 0x0107_F001),
        write(ONE.gfn + 1, 0x0107_F002),
        _hole(3, 2),
        read(ONE.gfn),
        read(ONE.gfn + 1),
        write(ONE.gfn, 0x0107_F003),
        bound(_LOWEST, page=6),
        to_private(_LOWEST.gfn, 2),
        write(_LOWEST.gfn, 0x0107_F004),
        write(_LOWEST.gfn + 1, 0x0107_F005),
        _hole(5, 2),
        # The punched page before any that may get its memory, zeroed.
        read(_LOWEST.gfn),
        read(_LOWEST.gfn + 1),
        read(ONE.gfn),
        read(ONE.gfn + 1),
        unbound(ONE),
        write(_LOWEST.gfn, 0x0107_F006),
        _hole(6),
        read(_LOWEST.gfn),
        read(_LOWEST.gfn + 1),
    ),
    _hidden(
        "private-hole-while-the-gpa-is-shared",
        "The file is punched even while its gpas are shared: made private again, the page is "
        "zeros.",
        made(),
        bound(ONE),
        to_private(ONE.gfn, 2),
        write(ONE.gfn, 0x0107_B000),
        write(ONE.gfn + 1, 0x0107_B001),
        to_shared(ONE.gfn, 2),
        read(ONE.gfn),
        _hole(0),
        read(ONE.gfn),
        to_private(ONE.gfn, 2),
        read(ONE.gfn),
        read(ONE.gfn + 1),
    ),
    _hidden(
        "private-hole-between-delete-and-create",
        "A page that is punched after a deletion reads as zeros in the next slot.",
        made(),
        bound(ONE, page=2),
        to_private(ONE.gfn, 2),
        write(ONE.gfn, 0x0107_C000),
        write(ONE.gfn + 1, 0x0107_C001),
        unbound(ONE),
        _hole(2),
        bound(ONE, page=2),
        read(ONE.gfn),
        read(ONE.gfn + 1),
    ),
    _hidden(
        "private-hole-in-memory-mapped-ahead",
        "A punched page that was mapped ahead reads as zeros, and can be mapped ahead again.",
        made(),
        bound(ONE),
        to_private(ONE.gfn, 2),
        PreFaultMemory(ONE.gfn * _PAGE, 2 * _PAGE),
        write(ONE.gfn, 0x0107_D000),
        write(ONE.gfn + 1, 0x0107_D001),
        _hole(0),
        PreFaultMemory(ONE.gfn * _PAGE, 2 * _PAGE),
        read(ONE.gfn),
        read(ONE.gfn + 1),
        _hole(1),
        read(ONE.gfn + 1),
        needs=("pre_fault",),
    ),
)

SCENARIOS = (*_SHARED_MEMORY, *_PRIVATE_MEMORY)
"""All scenarios in which a hole is punched into a guest_memfd."""
