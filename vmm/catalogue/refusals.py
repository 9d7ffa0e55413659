"""Refusals: each errno at its border, next to live slots that must stay unchanged."""

from collections.abc import Iterator
from dataclasses import replace

import msgspec

from vmm.catalogue._area import Area
from vmm.catalogue._build import (
    API,
    A,
    Slot,
    at,
    but,
    creates,
    read,
    second_form,
)
from vmm.scenario.operations import (
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    Place,
    Scenario,
    SetUserMemoryRegion,
)
from vmm.scenario.slots import USER_END

_SET = "__kvm_set_memory_region"

_LIVE = Slot(1, 0x100, at("a"), pages=2)
_OTHER = Slot(2, 0x104, at("b"), pages=2)
_NEW = Slot(3, 0x103, at("a", 4))
_CALL = _NEW.create()
_SIZE = PAGE_SIZE_BYTES
_NEW_GPA = _NEW.gfn * PAGE_SIZE_BYTES
_FREE = Slot(5, 0x107, at("a", 4)).create()
_WITHIN_A_PAGE = tuple(1 << bit for bit in range(12))
_LIVE_GPA = _LIVE.gfn * PAGE_SIZE_BYTES


_refused = Area(tags=("errno",), source=_SET, before=creates(_LIVE, _OTHER))
_refused_often = replace(_refused, survey="read")
"""For many calls; that a refusal leaves READONLY as it is, others show, by writes."""


_ALIGNMENT = (
    _refused_often(
        "refuse-an-unaligned-size",
        "memory_size must be a multiple of the page size; half a page neither creates nor deletes.",
        but(_CALL, memory_size=1),
        but(_CALL, memory_size=_SIZE - 1),
        but(_CALL, memory_size=_SIZE + 1),
        _CALL,
        but(_LIVE.create(), memory_size=_SIZE // 2),
        but(_LIVE.create(), memory_size=2 * _SIZE + 1),
        *(but(_FREE, memory_size=bit) for bit in _WITHIN_A_PAGE),
        *(but(_FREE, memory_size=_SIZE + bit) for bit in _WITHIN_A_PAGE),
    ),
    _refused_often(
        "refuse-an-unaligned-gpa",
        "guest_phys_addr must be page aligned, to create, to move and to delete.",
        but(_CALL, guest_phys_addr=_NEW_GPA + 1),
        but(_CALL, guest_phys_addr=_NEW_GPA + _SIZE - 1),
        _CALL,
        but(_LIVE.create(), guest_phys_addr=_LIVE_GPA + 1),
        but(_LIVE.create(), guest_phys_addr=_LIVE_GPA + _SIZE // 2),
        but(_LIVE.delete(), guest_phys_addr=_SIZE - 1),
        *(but(_FREE, guest_phys_addr=_FREE.guest_phys_addr + bit) for bit in _WITHIN_A_PAGE),
    ),
    _refused_often(
        "refuse-an-unaligned-hva",
        "userspace_addr must be page aligned, even on deletion, which ignores where it points.",
        but(_CALL, userspace_addr=Place("a", 1)),
        but(_CALL, userspace_addr=Place("a", _SIZE - 1)),
        but(_CALL, userspace_addr=Place("a", _SIZE)),
        but(_LIVE.create(), userspace_addr=Place("a", 1)),
        but(_LIVE.delete(), userspace_addr=Place("a", 1)),
        but(_LIVE.delete(), userspace_addr=Place("a", _SIZE - 1)),
        *(but(_FREE, userspace_addr=Place("a", 4 * _SIZE + bit)) for bit in _WITHIN_A_PAGE),
    ),
)

_KERNEL_HALF = (1 << 63, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_8100_0000, (1 << 64) - _SIZE)
_BETWEEN = (0x7FFF_FFFF_F000, 1 << 47, 1 << 56, (1 << 63) - _SIZE)
_USER_ENDS = (0x7FFF_FFFF_F000, (1 << 56) - _SIZE)
"""With four and with five levels of page tables; the last page below the end is unusable."""

_CVE = "fa3d315a4ce2, 09d952c971a5 (CVE-2013-1943)"

_ADDRESSES = (
    _refused_often(
        "refuse-a-kernel-hva",
        "An address in the kernel's half is refused: the guest could read and write the kernel.",
        *(but(_CALL, userspace_addr=hva) for hva in _KERNEL_HALF),
        *(but(_LIVE.create(), userspace_addr=hva) for hva in _KERNEL_HALF),
        but(_CALL, userspace_addr=(1 << 63) - _SIZE, memory_size=2 * _SIZE),
        source=_CVE,
    ),
    _refused(
        "refuse-a-kernel-hva-on-deletion",
        "A deletion with an address that is not a user address is refused, and deletes nothing.",
        *(but(_LIVE.delete(), userspace_addr=hva) for hva in _KERNEL_HALF),
        source="e0135a104c52; __kvm_set_memory_region",
    ),
    _refused_often(
        "refuse-an-hva-between-the-halves",
        "A non-canonical address, between the user's half and the kernel's, is refused.",
        *creates(*(Slot(10 + n, 0x110 + n, hva) for n, hva in enumerate(_BETWEEN))),
        source="6014bc27561f to 86e6b1547b3d",
    ),
    # No survey: these slots may show the guest arbitrary memory of this process.
    msgspec.structs.replace(
        _refused(
            "refuse-an-hva-across-the-end-of-user-memory",
            "If addresses beyond the end of user addresses are refused, so are ranges that reach "
            "there.",
            *(
                call
                for number, end in enumerate(_USER_ENDS)
                for call in (
                    Slot(10 + number, 0x110 + 8 * number, end).create(),
                    Slot(20 + number, 0x120 + 8 * number, end - _SIZE, pages=2).create(),
                    Slot(30 + number, 0x130 + 8 * number, end - 3 * _SIZE, pages=6).create(),
                )
            ),
            source="6014bc27561f to 86e6b1547b3d; access_ok(userspace_addr, memory_size)",
        ),
        survey="none",
    ),
    msgspec.structs.replace(
        _refused(
            "slot-up-to-the-end-of-user-memory",
            "A slot may end where user memory ends: it is made, moved, logged and deleted.",
            *(
                call
                for pages in (1, 3)
                for slot in (Slot(10, 0x110, USER_END - pages * _SIZE, pages),)
                for call in (
                    slot.create(),
                    slot.create(),
                    slot.move(0x118),
                    slot.move(0x118, LOG_DIRTY_PAGES),
                    second_form(slot.move(0x110, LOG_DIRTY_PAGES)),
                    slot.delete(),
                )
            ),
            source="access_ok(userspace_addr, memory_size)",
        ),
        survey="none",
    ),
)

_POINTERS = (
    _refused(
        "refuse-another-process",
        "A VM serves only the process that created it: a child's creates, moves and deletes fail.",
        *(
            msgspec.structs.replace(call, caller="forked-child")
            for call in (_CALL, _LIVE.move(0x102), _LIVE.create(), _LIVE.delete())
        ),
        source="kvm_vm_ioctl: kvm->mm != current->mm",
    ),
    _refused(
        "refuse-an-unreadable-argument",
        "A call whose argument cannot be read is EFAULT, and does nothing.",
        *(
            msgspec.structs.replace(call, argument="unreadable")
            for call in (_CALL, _LIVE.move(0x102), _LIVE.delete())
        ),
        source="kvm_vm_ioctl: copy_from_user",
    ),
    _refused(
        "refuse-by-the-first-check-that-fails",
        "With several errors the first check decides: EIO, EFAULT, then EINVAL before EEXIST.",
        msgspec.structs.replace(
            but(_CALL, memory_size=1), caller="forked-child", argument="unreadable"
        ),
        *(
            msgspec.structs.replace(call, caller="forked-child")
            for call in (
                but(_CALL, memory_size=1),
                but(_CALL, guest_phys_addr=1),
                but(_CALL, flags=1 << 3),
                but(_CALL, guest_phys_addr=_LIVE_GPA),
            )
        ),
        msgspec.structs.replace(but(_CALL, memory_size=1), argument="unreadable"),
        but(_CALL, guest_phys_addr=_LIVE_GPA, flags=1 << 3),
        # Both another size, other memory or another READONLY, and an overlap.
        replace(_LIVE, pages=1).move(_OTHER.gfn),
        replace(_LIVE, hva=at("a", 1)).move(_OTHER.gfn),
        _LIVE.move(_OTHER.gfn, READONLY),
    ),
)

_UNKNOWN_FLAGS = (GUEST_MEMFD, 1 << 3, 1 << 31, 0xFFFF_FFFF, GUEST_MEMFD | LOG_DIRTY_PAGES)

_FLAGS = (
    _refused_often(
        "refuse-unknown-flags",
        "The first form accepts two flags and no other, to create, to change and to delete.",
        *(but(_CALL, flags=flags) for flags in _UNKNOWN_FLAGS),
        but(_CALL, flags=LOG_DIRTY_PAGES),
        *(but(_LIVE.create(), flags=flags) for flags in _UNKNOWN_FLAGS),
        *(but(_LIVE.delete(), flags=flags) for flags in _UNKNOWN_FLAGS),
        source="KVM_SET_USER_MEMORY_REGION_V1_FLAGS",
        tags=("flags",),
    ),
    _refused_often(
        "refuse-flags-of-the-second-form",
        "GUEST_MEMFD excludes LOG_DIRTY_PAGES and READONLY, and no other bit has a meaning.",
        *(
            second_form(but(_CALL, flags=flags))
            for flags in (
                GUEST_MEMFD | LOG_DIRTY_PAGES,
                GUEST_MEMFD | READONLY,
                *(1 << bit for bit in range(3, 32)),
            )
        ),
        source="check_memory_region_flags",
        needs=("user_memory2",),
        tags=("flags", "second-form"),
    ),
    _refused(
        "refuse-a-guest-memfd-offset",
        "The offset into a guest_memfd must be page aligned, and its end must not wrap.",
        second_form(but(_CALL, flags=GUEST_MEMFD), guest_memfd_offset=1),
        second_form(but(_CALL, flags=GUEST_MEMFD), guest_memfd_offset=(1 << 64) - _SIZE),
        needs=("user_memory2", "guest_memfd"),
        tags=("second-form",),
    ),
    _refused(
        "refuse-a-guest-memfd-that-is-not-open",
        "A guest_memfd of -1 is EBADF.",
        second_form(but(_CALL, flags=GUEST_MEMFD)),
        source="kvm_gmem_bind",
        needs=("user_memory2", "guest_memfd"),
        tags=("second-form",),
    ),
    _refused(
        "guest-memfd-as-the-capability-says",
        "GUEST_MEMFD, here of a file that is not open, is EBADF if KVM_CAP_GUEST_MEMFD says that "
        "there is such a flag; else it is an unknown one: EINVAL.",
        second_form(but(_CALL, flags=GUEST_MEMFD)),
        source="check_memory_region_flags",
        needs=("user_memory2",),
        tags=("second-form", "flags"),
    ),
    Scenario(
        name="readonly-as-the-capability-says",
        why="READONLY is accepted if KVM_CAP_READONLY_MEM says so; else it is an unknown flag.",
        source=API,
        tags=("readonly", "flags"),
        mappings=(A,),
        operations=creates(Slot(1, 0x100, at("a"), flags=READONLY)),
    ),
)


_READABLE = Slot(8, 0x120, at("a", 6), flags=READONLY)
_LOGGED = Slot(9, 0x124, at("b", 4), pages=2, flags=LOG_DIRTY_PAGES)
_HIGH = Slot(10, 0x12_3456, at("a", 4), pages=2)  # Above 4 GiB.
_ALL = (_NEW, _LIVE, _READABLE, _LOGGED, _HIGH)


def _calls_on(slot: Slot) -> Iterator[SetUserMemoryRegion]:
    """Yield what may be done with a slot: with its flags, or with any if it does not exist."""
    each = (0, LOG_DIRTY_PAGES, READONLY, READONLY | LOG_DIRTY_PAGES)
    for flags in each if slot is _NEW else (slot.flags,):
        yield slot.change(flags)
        yield slot.move(0x130, flags)
        yield but(slot.delete(), flags=flags)


def _each_wrong(slot: Slot) -> Iterator[SetUserMemoryRegion]:
    """Yield these calls with one value wrong, each of those that are checked before the slot is."""
    for call in _calls_on(slot):
        gpa, size = call.guest_phys_addr, call.memory_size
        yield msgspec.structs.replace(call, slot=0xFFFF)
        yield msgspec.structs.replace(call, slot=0xFFFF_0000 | call.slot)
        yield but(call, guest_phys_addr=gpa + 0x200)
        yield but(call, userspace_addr=Place("a", 0x200))
        yield but(call, userspace_addr=1 << 63)
        yield but(call, flags=call.flags | 1 << 3)
        if size:
            yield but(call, memory_size=size + 0x200)
            yield but(call, guest_phys_addr=(1 << 64) - size)


_COMBINED = (
    _refused_often(
        "refuse-each-wrong-value-with-each-flag",
        "A wrong value is refused whatever the valid flags are: to create a slot, and to change, "
        "move or delete a plain, a READONLY, a logged one, or one above 4 GiB.",
        *creates(_READABLE, _LOGGED, _HIGH),
        *(wrong for slot in _ALL for wrong in _each_wrong(slot)),
        *(read(slot.gfn + page) for slot in _ALL for page in (0, 1)),
        _CALL,
        read(_NEW.gfn),
        needs=("readonly_mem",),
        tags=("flags",),
        survey="none",
    ),
)


def _immutable(name: str, why: str, *changed: SetUserMemoryRegion) -> Scenario:
    return _refused(name, why, *changed, source=API, tags=("immutable",))


_RO = Slot(3, 0x103, at("a", 4), flags=READONLY)

_IMMUTABLE = (
    _immutable(
        "refuse-another-hva",
        "A slot keeps its userspace_addr: not the next page, not other memory, not 0.",
        replace(_LIVE, hva=at("a", 1)).create(),
        replace(_LIVE, hva=at("b")).create(),
        replace(_LIVE, hva=0).create(),
        replace(_LIVE, hva=at("a", 1)).move(0x102),
        replace(_LIVE, hva=at("a", 1)).change(LOG_DIRTY_PAGES),
        replace(_LIVE, hva=at("a", 1)).move(0x102, LOG_DIRTY_PAGES),
    ),
    _immutable(
        "refuse-another-size",
        "A slot neither grows nor shrinks.",
        replace(_LIVE, pages=3).create(),
        replace(_LIVE, pages=1).create(),
        replace(_LIVE, pages=1).move(0x102),
        replace(_LIVE, pages=3).change(LOG_DIRTY_PAGES),
        replace(_LIVE, pages=1).move(0x102, LOG_DIRTY_PAGES),
    ),
    _refused(
        "refuse-readonly-on",
        "READONLY cannot be set on an existing slot, neither in place nor by a move.",
        _LIVE.change(READONLY),
        _LIVE.change(READONLY | LOG_DIRTY_PAGES),
        _LIVE.move(0x102, READONLY),
        source="75d61fbcf563",
        needs=("readonly_mem",),
        tags=("immutable", "readonly"),
    ),
    _refused(
        "refuse-readonly-off",
        "READONLY cannot be cleared on an existing slot, neither in place nor by a move.",
        _RO.create(),
        _RO.change(0),
        _RO.change(LOG_DIRTY_PAGES),
        _RO.move(0x102, 0),
        source="75d61fbcf563",
        needs=("readonly_mem",),
        tags=("immutable", "readonly"),
    ),
)


def _overlap(name: str, why: str, *slots: Slot) -> Scenario:
    return _refused(name, why, *creates(*slots), source=API, tags=("create", "overlap"))


def _between_two() -> Iterator[Scenario]:
    """Yield slots that are created, or moved, onto the end of one slot and the start of another."""
    for name, gfn in (("of-two-that-meet", 0x204), ("of-two-and-their-gap", 0x205)):
        ends = Slot(3, 0x200, at("a"), 4), Slot(4, gfn, at("b"), 4)
        lengths = range(gfn - 0x203 + 1, gfn - 0x203 + 4)
        news = [
            Slot(5, first, at("b"), pages)
            for pages in lengths
            for first in range(gfn + 1 - pages, 0x204)
        ]
        away = [Slot(6 + pages, 0x300 + 8 * pages, at("a"), pages) for pages in lengths]
        moves = [slot.move(first) for slot in away for first in range(gfn + 1 - slot.pages, 0x204)]
        yield _refused(
            f"refuse-the-ends-{name}",
            "A slot over the end of one and the start of another is EEXIST, created or moved.",
            *creates(*ends, *news, *away),
            *moves,
            *(read(page) for page in range(0x200, gfn + 4)),
            source=API,
            tags=("create", "move", "overlap"),
            survey="none",
        )


_OVERLAPS = (
    _overlap("refuse-the-place-of-another", "Overlap with another slot, even in part, is EEXIST.",
             Slot(3, 0x100, at("b", 4), pages=2), Slot(3, 0x101, at("b", 4))),
    _overlap("refuse-to-share-a-page", "One page of overlap is EEXIST; adjacent slots are fine.",
             Slot(3, 0xFF, at("b", 4), pages=2), Slot(3, 0x101, at("b", 4), pages=2),
             Slot(3, 0xFE, at("b", 4), pages=2), Slot(4, 0x102, at("b", 6), pages=2)),
    _overlap("refuse-to-lie-around-others", "A slot around two others is EEXIST.",
             Slot(3, 0xFF, at("a"), pages=8)),
    *_between_two(),
    _overlap("refuse-the-middle-of-another", "A slot in the middle of another is EEXIST.",
             Slot(3, 0x200, at("a"), pages=4), Slot(4, 0x201, at("b", 4)),
             Slot(4, 0x201, at("b", 4), pages=2), Slot(4, 0x202, at("b", 4)),
             Slot(4, 0x200, at("b", 4), pages=4), Slot(4, 0x203, at("b", 4))),
    _overlap("refuse-the-place-of-a-readonly-slot",
             "Overlap with a READONLY slot is EEXIST, whether the new one is READONLY or not.",
             Slot(3, 0x200, at("a"), pages=4, flags=READONLY), Slot(4, 0x200, at("b", 4), pages=4),
             Slot(4, 0x201, at("b", 4), flags=READONLY), Slot(4, 0x1FF, at("b", 2), pages=6),
             Slot(4, 0x203, at("b", 4), pages=2)),
    _overlap("refuse-the-place-of-a-logged-slot",
             "Overlap with a logged slot is EEXIST, whether the new one is logged or not.",
             Slot(3, 0x200, at("a"), pages=4, flags=LOG_DIRTY_PAGES),
             Slot(4, 0x200, at("b", 4), pages=4, flags=LOG_DIRTY_PAGES),
             Slot(4, 0x201, at("b", 4)), Slot(4, 0x1FF, at("b", 2), pages=6),
             Slot(4, 0x203, at("b", 4), pages=2, flags=LOG_DIRTY_PAGES)),
    _overlap("refuse-the-place-of-the-guest", "Overlap with the guest's own slot is EEXIST.",
             Slot(3, 0xFFFEF, at("b", 4), pages=2), Slot(3, 0xFFFFF, at("b", 4))),
)  # fmt: skip


SCENARIOS = (
    *_ALIGNMENT,
    *_ADDRESSES,
    *_POINTERS,
    *_FLAGS,
    *_COMBINED,
    *_IMMUTABLE,
    *_OVERLAPS,
)
"""All refusals except those at limits that differ from kernel to kernel."""
