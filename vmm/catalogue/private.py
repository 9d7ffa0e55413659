"""Memory attributes, and private memory: which gpas reach a guest_memfd in place of the hva."""

from dataclasses import replace

from vmm.catalogue._build import HUGE, A, B, Slot, at, read, write
from vmm.catalogue._memfds import (
    ONE,
    TWO,
    bound,
    made,
    private_vm_scenario,
    to_private,
    to_shared,
    unbound,
)
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    PAGE_SIZE_BYTES,
    AnyOperation,
    CloseGuestMemfd,
    Inspect,
    Mapping,
    NewVm,
    PreFaultMemory,
    Scenario,
    SetMemoryAttributes,
    Sweep,
)

_API = "api.rst 4.141 KVM_SET_MEMORY_ATTRIBUTES"
_PAGE = PAGE_SIZE_BYTES
_TOP = (1 << 64) - _PAGE
_FOUR = Slot(1, 0x100, at("a"), pages=4)


def _protected(
    name: str,
    why: str,
    *operations: AnyOperation,
    needs: tuple[str, ...] = (),
    tags: tuple[str, ...] = (),
    source: str = _API,
    mappings: tuple[Mapping, ...] = (A, B),
) -> Scenario:
    """Return a scenario on a VM with private memory, without surveys."""
    return private_vm_scenario(
        name,
        why,
        *operations,
        source=source,
        mappings=mappings,
        needs=needs,
        tags=("private", *tags),
    )


def _rewritten(number: int, change: SetMemoryAttributes) -> tuple[AnyOperation, ...]:
    """Change attributes, then write and read each page of a slot of four."""
    pages = range(_FOUR.gfn, _FOUR.gfn + _FOUR.pages)
    return (
        change,
        *(read(gfn) for gfn in pages),
        *(write(gfn, 0x5EC5_0000 + 0x1000 * number + gfn) for gfn in pages),
        *(read(gfn) for gfn in pages),
        Inspect(),
    )


_REFUSED = (
    SetMemoryAttributes(ONE.gfn * _PAGE, _PAGE, ATTRIBUTE_PRIVATE, flags=1),
    SetMemoryAttributes(ONE.gfn * _PAGE, _PAGE, flags=1 << 63),
    *(SetMemoryAttributes(ONE.gfn * _PAGE, _PAGE, 1 << bit) for bit in (0, 1, 2, 4, 63)),
    SetMemoryAttributes(ONE.gfn * _PAGE + 1, _PAGE),
    SetMemoryAttributes(ONE.gfn * _PAGE, _PAGE - 1),
    SetMemoryAttributes(ONE.gfn * _PAGE, 0),
    SetMemoryAttributes(_TOP, _PAGE),
    SetMemoryAttributes(_TOP, 2 * _PAGE),
)

_THREE = (Slot(1, 0x100, at("a")), Slot(2, 0x101, at("b")), Slot(3, 0x103, at("a", 1)))
_LARGE = Slot(1, 0x200, at("huge"), pages=512)
_ODD = _LARGE.gfn + 3


def _mixed(name: str, why: str, *operations: AnyOperation) -> Scenario:
    """Return a scenario in which one page of a huge page is private, the others are shared."""
    return _protected(
        name,
        why,
        made(pages=_LARGE.pages),
        *operations,
        read(_LARGE.gfn + 0x10),
        read(_ODD),
        write(_ODD, 0x5EC7_0001),
        read(_ODD - 1),
        read(_ODD + 1),
        read(_ODD),
        to_shared(_ODD),
        read(_ODD),
        Inspect(),
        source="kvm_arch_post_set_memory_attributes, kvm_mmu_init_memslot_memory_attributes",
        tags=("huge",),
        mappings=(HUGE,),
    )


_TWO_LARGE = Slot(1, 0x200, at("huge"), pages=1024)
_BORDERS = (0x1FF, 0x200)
"""The last page of the first huge page, and the first page of the second."""


def _seen_around(page: int, value: int) -> tuple[AnyOperation, ...]:
    """Touch a page after another page of its huge page, for which a huge page may be mapped."""
    gfn, middle = _TWO_LARGE.gfn + page, _TWO_LARGE.gfn + (page & 0x200) + 0x10
    return read(middle), read(gfn), write(gfn, value), write(middle, value + 1), read(gfn)


def _all_but_one(but: int) -> tuple[AnyOperation, ...]:
    """Make all pages of two huge pages but one private, then all but that one shared."""
    gfn, end = _TWO_LARGE.gfn, _TWO_LARGE.gfn + _TWO_LARGE.pages
    number = 0x5EC8_0000 + 0x100 * but
    ranges = [(at, to - at) for at, to in ((gfn, gfn + but), (gfn + but + 1, end)) if to > at]
    return (
        to_shared(gfn, _TWO_LARGE.pages),
        *(to_private(*each) for each in ranges),
        # The one page is touched first: if a huge page is mapped at all, it is mapped here.
        read(gfn + but),
        *_seen_around(but, number),
        to_private(gfn, _TWO_LARGE.pages),
        *(to_shared(*each) for each in ranges),
        *_seen_around(but, number + 2),
        Inspect(),
    )


_HUGE_PAGES = 1000
"""What KVM knows of so many huge pages nearly fills a page: beyond the next ones there is none."""

_BIG = Slot(1, 0x1000, at("big"), pages=_HUGE_PAGES * 512)
_LAST_GFN = _BIG.gfn + _BIG.pages - 1
_FAR = (_LAST_GFN - 0x200, 1 << 18)
"""The last two huge pages of the slot, but for a page, and nearly 1 GiB beyond it."""

_BEFORE = (_BIG.gfn - 4 * 512, 4 * 512 + 1)
"""Four huge pages before the slot, and its first page."""

_SCATTERED = (0x210, 0x10, 0, 0x3FF, 0x1FF, 0x200, 0x11)


def _rewritten_page(page: int) -> tuple[AnyOperation, ...]:
    gfn = _TWO_LARGE.gfn + page
    return read(gfn), write(gfn, 0x5ECB_0000 + page)


_IN_HUGE_PAGES = (
    _protected(
        "private-all-but-a-page-at-an-end-of-a-huge-page",
        "No huge page is mapped where only the first, or the last, page differs in its attribute.",
        made(pages=_TWO_LARGE.pages),
        bound(_TWO_LARGE),
        *(op for page in (0, *_BORDERS, 0x3FF) for op in _all_but_one(page)),
        source="hugepage_has_attrs",
        tags=("huge",),
        mappings=(HUGE,),
    ),
    _protected(
        "private-at-the-ends-of-huge-pages-of-a-new-slot",
        "A new slot has no huge page where only the first page, or the last one, is private.",
        made(pages=_TWO_LARGE.pages),
        *(to_private(_TWO_LARGE.gfn + page) for page in _BORDERS),
        bound(_TWO_LARGE),
        *(op for page in _BORDERS for op in _seen_around(page, 0x5EC9_0000 + page)),
        unbound(_TWO_LARGE),
        to_shared(_TWO_LARGE.gfn, _TWO_LARGE.pages),
        *(to_private(_TWO_LARGE.gfn + page) for page in (0, 0x3FF)),
        bound(_TWO_LARGE),
        *(op for page in (0, 0x3FF) for op in _seen_around(page, 0x5ECA_0000 + page)),
        Inspect(),
        source="kvm_mmu_init_memslot_memory_attributes",
        tags=("huge",),
        mappings=(HUGE,),
    ),
    _protected(
        "private-pages-of-whole-huge-pages",
        "Where all of a huge page is private, each page is its own page of the guest_memfd.",
        made(pages=_TWO_LARGE.pages),
        bound(_TWO_LARGE),
        to_private(_TWO_LARGE.gfn, _TWO_LARGE.pages),
        *(op for page in _SCATTERED for op in _rewritten_page(page)),
        *(read(_TWO_LARGE.gfn + page) for page in _SCATTERED),
        Inspect(),
        source="kvm_faultin_pfn_private, kvm_max_private_mapping_level",
        tags=("huge",),
        mappings=(HUGE,),
    ),
    _protected(
        "private-range-far-beyond-a-slot",
        "A private range may begin before a slot, and go on far beyond its end, where nothing "
        "belongs to it.",
        _BIG.create(),
        read(_BIG.gfn),
        write(_LAST_GFN - 0x201, 0x5ECC_0001),
        to_private(*_FAR),
        read(_LAST_GFN - 0x201),
        to_shared(*_FAR),
        write(_LAST_GFN, 0x5ECC_0002),
        read(_LAST_GFN),
        to_private(*_BEFORE),
        read(_BIG.gfn + 1),
        to_shared(*_BEFORE),
        read(_BIG.gfn),
        _BIG.delete(),
        Inspect(),
        source="kvm_handle_gfn_range, kvm_arch_post_set_memory_attributes",
        mappings=(Mapping("big", _BIG.pages),),
    ),
    _mixed(
        "private-page-in-a-huge-page",
        "A huge page is not mapped, and does not stay mapped, where one of its pages is private.",
        bound(_LARGE),
        read(_LARGE.gfn + 0x10),
        to_private(_ODD),
    ),
    _mixed(
        "private-page-in-a-huge-page-of-a-new-slot",
        "A new slot has no huge page where one of its pages is private already.",
        to_private(_ODD),
        bound(_LARGE),
    ),
    _mixed(
        "private-pages-over-huge-pages-ends",
        "A private range may begin and end within huge pages that are otherwise shared.",
        bound(_LARGE),
        read(_LARGE.gfn + 0x10),
        to_private(_LARGE.gfn - 0x10, 0x14),
        to_private(_LARGE.gfn + 0x1F0, 0x20),
        read(_LARGE.gfn + 0x1F0),
        read(_LARGE.gfn),
    ),
)

_IN_SPACE_1 = Slot((1 << 16) + 1, 0x110, at("b"), 2)

SCENARIOS = (
    private_vm_scenario(
        "private-vm-has-the-spaces-that-it-says",
        "A VM with private memory accepts slots of address space 1 if it reports that it has one.",
        *(ONE.create(), _IN_SPACE_1.create(), _IN_SPACE_1.delete()),
        source="kvm_arch_nr_memslot_as_ids; eed52e434bc3",
        tags=("private", "errno"),
    ),
    Scenario(
        name="attributes-of-an-ordinary-vm",
        why="An ordinary VM supports no attributes: none can be set.",
        source=_API,
        tags=("private", "errno"),
        mappings=(A, B),
        operations=(
            ONE.create(),
            *_REFUSED,
            to_private(ONE.gfn),
            to_shared(ONE.gfn),
            to_shared(0x400, 16),
            read(ONE.gfn),
        ),
    ),
    _protected(
        "attributes-refused",
        "Flags, unknown attributes and ranges that are not whole pages are EINVAL.",
        made(),
        bound(ONE),
        *_REFUSED,
        read(ONE.gfn),
        to_private(ONE.gfn),
        *_REFUSED,
        read(ONE.gfn),
        tags=("errno",),
    ),
    _protected(
        "private-and-shared-memory",
        "A private page is zeros at first, and is not the shared page at its gpa.",
        made(),
        bound(ONE),
        read(ONE.gfn),
        to_private(ONE.gfn),
        read(ONE.gfn),
        write(ONE.gfn, 0x5EC4_E701),
        read(ONE.gfn),
        read(ONE.gfn + 1),
        Inspect(),
        to_shared(ONE.gfn),
        read(ONE.gfn),
        write(ONE.gfn, 0x0FE4_0001),
        Inspect(),
        to_private(ONE.gfn),
        read(ONE.gfn),
    ),
    _protected(
        "private-by-the-page",
        "Each page has its own attributes; accesses and string instructions may cross the border.",
        made(),
        bound(replace(ONE, pages=4), page=3),
        to_private(ONE.gfn + 1, 2),
        write(ONE.gfn + 1, 0x5EC4_E702, 0xFFE),
        Sweep(ONE.gfn * _PAGE + 0xFF0, 8, "write", value=0x5EC4_E703),
        Sweep((ONE.gfn + 3) * _PAGE - 0x10, 8, "write", value=0x5EC4_E704),
        Inspect(),
        *(read(ONE.gfn + page, at) for page in range(4) for at in (0, 0x100, 0xFFC)),
        to_shared(ONE.gfn, 4),
        *(read(ONE.gfn + page, at) for page in range(4) for at in (0, 0x100, 0xFFC)),
    ),
    _protected(
        "private-two-pages-after-the-first",
        "Two pages become private, or shared, where the first is that already.",
        made(),
        bound(_FOUR),
        *(to_private(_FOUR.gfn + 1), to_private(_FOUR.gfn + 1, 2)),
        *(write(_FOUR.gfn + page, 0x5EC4_E710 + page) for page in range(3)),
        Inspect(),
        *(to_shared(_FOUR.gfn + 1), to_shared(_FOUR.gfn + 1, 2)),
        *(read(_FOUR.gfn + page) for page in range(3)),
        source=f"{_API}; kvm_range_has_memory_attributes",
    ),
    _protected(
        "private-set-before-the-slot",
        "Attributes belong to the gpa: they exist before the slot, and after it.",
        to_private(ONE.gfn, 4),
        made(),
        bound(ONE),
        write(ONE.gfn, 0x5EC4_E705),
        unbound(ONE),
        bound(replace(ONE, hva=at("b"))),
        read(ONE.gfn),
        to_shared(ONE.gfn),
        read(ONE.gfn),
        read(ONE.gfn + 1),
    ),
    _protected(
        "private-content-stays-with-the-file",
        "A file that is bound elsewhere shows what was written through another slot.",
        made(),
        bound(ONE, page=2),
        to_private(ONE.gfn, 2),
        to_private(TWO.gfn, 2),
        write(ONE.gfn + 1, 0x5EC4_E706),
        unbound(ONE),
        bound(TWO, page=3),
        read(TWO.gfn),
        read(TWO.gfn + 1),
    ),
    _protected(
        "private-without-a-file",
        "Private memory without a guest_memfd is KVM_EXIT_MEMORY_FAULT, until it is shared again.",
        ONE.create(),
        to_private(ONE.gfn),
        read(ONE.gfn),
        write(ONE.gfn, 0x5EC4_E707),
        read(ONE.gfn + 1),
        to_private(0x300),
        read(0x300),
        to_shared(ONE.gfn),
        read(ONE.gfn),
        Inspect(),
        source="api.rst 5, KVM_EXIT_MEMORY_FAULT",
    ),
    _protected(
        "private-without-a-file-after-it-was-used",
        "Memory that guests have used is theirs no longer once it is private, though its slot "
        "has no guest_memfd; when it is shared again, it is as it was.",
        ONE.create(),
        *(write(ONE.gfn + page, 0x5EC4_E7A0 + page) for page in range(ONE.pages)),
        to_private(ONE.gfn),
        read(ONE.gfn),
        write(ONE.gfn, 0x5EC4_E7A8),
        read(ONE.gfn + 1),
        to_private(ONE.gfn + 1),
        read(ONE.gfn + 1),
        to_shared(ONE.gfn, 2),
        read(ONE.gfn),
        read(ONE.gfn + 1),
        Inspect(),
        source="api.rst 5, KVM_EXIT_MEMORY_FAULT; kvm_arch_pre_set_memory_attributes",
    ),
    _protected(
        "private-where-mmio-was",
        "A gpa without a slot was cached as MMIO, slots have changed, and it is private by now.",
        read(0x300),
        write(0x301, 0x5EC4_E70B),
        ONE.create(),
        to_private(0x300, 2),
        read(0x300),
        write(0x301, 0x5EC4_E70C),
        source="api.rst 5, KVM_EXIT_MEMORY_FAULT",
    ),
    _protected(
        "private-after-cached-mmio",
        "A gpa that was cached as MMIO becomes private memory, and is then accessed as that.",
        read(ONE.gfn),
        made(),
        bound(ONE),
        to_private(ONE.gfn),
        read(ONE.gfn),
        write(ONE.gfn, 0x5EC4_E70A),
        read(ONE.gfn),
        source="api.rst 4.141; api.rst 5, KVM_EXIT_MEMORY_FAULT",
    ),
    _protected(
        "private-and-the-file-closed",
        "When the guest_memfd is closed, private memory faults, and shared memory is unchanged.",
        made(),
        bound(_FOUR),
        to_private(_FOUR.gfn, 3),
        *(write(_FOUR.gfn + page, 0x5EC4_E708 + page) for page in range(3)),
        CloseGuestMemfd("g"),
        *(read(_FOUR.gfn + page) for page in (2, 1, 0, 3)),
        to_shared(_FOUR.gfn),
        read(_FOUR.gfn),
        source="kvm_gmem_release",
        tags=("lifetime",),
    ),
    _protected(
        "private-ends-with-the-vm",
        "A new VM has no attributes.",
        made(),
        bound(ONE),
        to_private(ONE.gfn, 2),
        write(ONE.gfn, 0x5EC4_E709),
        NewVm(),
        ONE.create(),
        read(ONE.gfn),
        Inspect(),
        tags=("lifetime",),
    ),
    _protected(
        "private-mapped-ahead",
        "Private memory is mapped ahead like shared memory, but not where there is none.",
        made(),
        bound(ONE),
        to_private(ONE.gfn + 1, 2),
        PreFaultMemory(ONE.gfn * _PAGE, 3 * _PAGE),
        PreFaultMemory((ONE.gfn + 2) * _PAGE, _PAGE),
        read(ONE.gfn + 1),
        to_shared(ONE.gfn + 1),
        read(ONE.gfn + 1),
        PreFaultMemory((ONE.gfn + 1) * _PAGE, _PAGE),
        needs=("pre_fault",),
        tags=("pre-fault",),
    ),
    _protected(
        "private-range-split-and-joined",
        "A private range is made shared in the middle, then at either end, then private again.",
        made(),
        bound(_FOUR),
        *_rewritten(0, to_private(_FOUR.gfn, 4)),
        *_rewritten(1, to_shared(_FOUR.gfn + 1, 2)),
        *_rewritten(2, to_private(_FOUR.gfn + 2)),
        *_rewritten(3, to_shared(_FOUR.gfn)),
        *_rewritten(4, to_shared(_FOUR.gfn + 3)),
        *_rewritten(5, to_private(_FOUR.gfn - 1, 6)),
    ),
    _protected(
        "private-converted-to-and-fro",
        "Each time a page is converted, it shows what it last held as private, or as shared.",
        made(),
        bound(ONE),
        *(
            operation
            for turn in range(4)
            for operation in (
                read(ONE.gfn),
                write(ONE.gfn, 0x5EC6_0000 + turn),
                to_private(ONE.gfn),
                read(ONE.gfn),
                read(ONE.gfn + 1),
                write(ONE.gfn, 0x5EC6_1000 + turn),
                to_shared(ONE.gfn),
            )
        ),
        read(ONE.gfn),
        Inspect(),
    ),
    _protected(
        "private-two-slots-of-one-file",
        "Each of two slots reaches its own part of the file, even when the other is deleted.",
        made(),
        bound(ONE, page=4),
        bound(TWO, page=2),
        to_private(ONE.gfn, 2),
        to_private(TWO.gfn, 2),
        *(write(slot.gfn + page, slot.gfn + page) for slot in (ONE, TWO) for page in (0, 1)),
        unbound(ONE),
        *(read(TWO.gfn + page) for page in (0, 1)),
        bound(ONE, page=0),
        *(read(slot.gfn + page) for slot in (ONE, TWO) for page in (0, 1)),
        unbound(TWO),
        bound(TWO, page=5),
        *(read(slot.gfn + page) for slot in (ONE, TWO) for page in (0, 1)),
    ),
    _protected(
        "private-range-over-several-slots",
        "A range becomes private, and shared again, in each of the slots in it.",
        made(),
        *(bound(slot, page) for page, slot in enumerate(_THREE)),
        *(write(slot.gfn, slot.gfn) for slot in _THREE),
        to_private(_THREE[0].gfn - 1, 6),
        *(read(slot.gfn) for slot in _THREE),
        *(write(slot.gfn, 0x5ECB_0000 + slot.gfn) for slot in _THREE),
        to_shared(_THREE[0].gfn - 1, 6),
        *(read(slot.gfn) for slot in _THREE),
        Inspect(),
        source="kvm_handle_gfn_range",
    ),
    _protected(
        "private-memory-goes-with-its-slot",
        "The next slot at the gpa has no file: private memory faults, shared memory is its own.",
        made(),
        bound(ONE),
        to_private(ONE.gfn, 2),
        write(ONE.gfn, 0x5EC4_E70A),
        unbound(ONE),
        ONE.create(),
        read(ONE.gfn),
        to_shared(ONE.gfn),
        read(ONE.gfn),
        read(ONE.gfn + 1),
        ONE.delete(),
        to_private(ONE.gfn),
        bound(ONE),
        read(ONE.gfn),
    ),
    _protected(
        "private-file-closed-and-another-made",
        "A file created after another was closed is not that file, even at the same address.",
        made(),
        bound(ONE),
        to_private(ONE.gfn, 2),
        to_private(TWO.gfn, 2),
        write(ONE.gfn, 0x5EC4_E70D),
        CloseGuestMemfd("g"),
        made("h"),
        bound(TWO, memfd="h"),
        read(ONE.gfn),
        write(TWO.gfn, 0x5EC4_E70E),
        read(ONE.gfn + 1),
        unbound(ONE),
        read(TWO.gfn),
        read(TWO.gfn + 1),
        source="kvm_gmem_release: a slot does not hold its file",
        tags=("lifetime",),
    ),
    _protected(
        "private-file-closed-after-refusals",
        "A refused binding does not hold the file: once it is closed, it backs no memory.",
        made(),
        bound(ONE),
        to_private(ONE.gfn, 2),
        write(ONE.gfn, 0x5EC4_E70F),
        bound(TWO),
        bound(TWO, page=7),
        bound(TWO, offset=1),
        CloseGuestMemfd("g"),
        read(ONE.gfn),
        read(ONE.gfn + 1),
        source="kvm_gmem_bind, kvm_gmem_release",
        tags=("lifetime",),
    ),
    *_IN_HUGE_PAGES,
    _protected(
        "private-file-closed-and-another-bound",
        "After a slot whose file was closed is deleted, another file bound there reads as zeros.",
        made(),
        bound(ONE),
        to_private(ONE.gfn, 2),
        write(ONE.gfn, 0x5EC4_E70B),
        CloseGuestMemfd("g"),
        read(ONE.gfn),
        unbound(ONE),
        made("h"),
        bound(ONE, memfd="h"),
        read(ONE.gfn),
        write(ONE.gfn, 0x5EC4_E70C),
        read(ONE.gfn),
        source="kvm_gmem_release, kvm_gmem_unbind; ae431059e75d",
        tags=("lifetime",),
    ),
)
"""All scenarios of memory attributes."""
