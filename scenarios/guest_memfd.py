"""Slots with a guest_memfd: what can be made, bound, mapped and closed, and in which order."""

from dataclasses import replace

import msgspec

from scenarios._build import A, B, Slot, at, but, read, second_form, write
from vmm.memslots.operations import (
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    MEMFD_INIT_SHARED,
    MEMFD_MMAP,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    CloseGuestMemfd,
    CreateGuestMemfd,
    HostWrite,
    Inspect,
    MapGuestMemfd,
    Mapping,
    NewVm,
    Scenario,
    SetUserMemoryRegion2,
    Survey,
)

_REGION2 = "api.rst 4.140 KVM_SET_USER_MEMORY_REGION2"
_CREATE = "api.rst 4.142 KVM_CREATE_GUEST_MEMFD"
_SIZE = PAGE_SIZE_BYTES
_SHARED = MEMFD_MMAP | MEMFD_INIT_SHARED

_ORDINARY = Mapping("ordinary", 8, "memfd")
_SHOWN = Mapping("shown", 8, "guest_memfd")
_OTHER_SHOWN = Mapping("other-shown", 8, "guest_memfd")

_ONE = Slot(1, 0x100, at("a"), pages=2)
_TWO = Slot(2, 0x104, at("b"), pages=2)


def _made(name: str = "g", pages: int = 8, flags: int = 0) -> CreateGuestMemfd:
    return CreateGuestMemfd(name, pages * _SIZE, flags)


def _bound(
    slot: Slot, page: int = 0, memfd: str = "g", offset: int | None = None
) -> SetUserMemoryRegion2:
    """Set a slot that is bound to a guest_memfd from ``page``, or a byte offset, on."""
    call = second_form(replace(slot, flags=slot.flags | GUEST_MEMFD).create())
    return msgspec.structs.replace(
        call, guest_memfd=memfd, guest_memfd_offset=page * _SIZE if offset is None else offset
    )


def _unbound(slot: Slot) -> AnyOperation:
    return second_form(slot.delete())


def _memfd(
    name: str,
    why: str,
    *operations: AnyOperation,
    source: str = _REGION2,
    mappings: tuple[Mapping, ...] = (A, B),
    needs: tuple[str, ...] = (),
    tags: tuple[str, ...] = (),
    survey: Survey = "write",
) -> Scenario:
    return Scenario(
        name=name,
        why=why,
        source=source,
        tags=("guest-memfd", *tags),
        mappings=mappings,
        operations=operations,
        needs=("user_memory2", "guest_memfd", *needs),
        survey=survey,
    )


_MAKING = (
    _memfd(
        "memfd-create-and-close",
        "A guest_memfd of one page, and a large one of which nothing is used, come and go.",
        _made("small", 1),
        _made("large", 1 << 24),
        CloseGuestMemfd("small"),
        CloseGuestMemfd("large"),
        source=_CREATE,
    ),
    _memfd(
        "memfd-refuse-sizes",
        "The size is whole pages, more than none, and fits into a signed 64-bit number.",
        CreateGuestMemfd("none", 0),
        CreateGuestMemfd("byte", 1),
        CreateGuestMemfd("short", _SIZE - 1),
        CreateGuestMemfd("long", _SIZE + 1),
        CreateGuestMemfd("negative", 1 << 63),
        CreateGuestMemfd("all", (1 << 64) - _SIZE),
        _bound(_ONE, memfd="none"),
        source="kvm_gmem_create",
        tags=("errno",),
    ),
    _memfd(
        "memfd-flags-as-the-capability-says",
        "Each flag is taken or refused as KVM_CAP_GUEST_MEMFD_FLAGS says; unknown ones never are.",
        *(_made(f"bit-{bit}", 1, 1 << bit) for bit in (0, 1, 31, 63)),
        _made("both", 1, _SHARED),
        source=_CREATE,
        tags=("errno", "flags"),
    ),
)

_BINDING = (
    _memfd(
        "memfd-bind-and-delete",
        "A slot with a guest_memfd is created and deleted; its shared memory is at its hva.",
        _made(),
        _bound(_ONE),
        _unbound(_ONE),
        _bound(_ONE),
        _ONE.delete(),
    ),
    _memfd(
        "memfd-bind-the-whole-file-and-its-parts",
        "Any page-aligned part can be bound, the last page included, to several slots at once.",
        _made(),
        _bound(Slot(1, 0x100, at("a"), pages=8)),
        _unbound(_ONE),
        _bound(_ONE, page=6),
        _bound(_TWO, page=4),
        _bound(Slot(3, 0x108, at("a", 4)), page=0),
        _bound(Slot(4, 0x109, at("a", 5)), page=3),
    ),
    _memfd(
        "memfd-two-files",
        "Slots of two guest_memfds do not stand in each other's way at the same offset.",
        _made("g"),
        _made("h"),
        _bound(_ONE, memfd="g"),
        _bound(_TWO, memfd="h"),
        _unbound(_ONE),
        _bound(replace(_ONE, gfn=0x108), page=2, memfd="h"),
    ),
    _memfd(
        "memfd-flag-clear-ignores-the-file",
        "Without GUEST_MEMFD the second form is the first: file and offset do not matter.",
        msgspec.structs.replace(
            second_form(_ONE.create()), guest_memfd="never", guest_memfd_offset=1
        ),
        _made("never"),
        second_form(_ONE.move(0x108)),
        second_form(replace(_ONE, gfn=0x108).change(LOG_DIRTY_PAGES)),
    ),
    _memfd(
        "memfd-stays-behind-when-its-slot-goes",
        "What a deleted slot held of the file can be bound again, by any id and anywhere.",
        _made(),
        _bound(_ONE, page=2),
        _unbound(_ONE),
        _bound(_TWO, page=3),
        _bound(replace(_ONE, gfn=0x108), page=1),
    ),
)

_REFUSING = (
    _memfd(
        "memfd-refuse-what-is-not-open",
        "A number that is no open file is EBADF, be it closed, or never opened.",
        _bound(_ONE, memfd="g"),
        _made(),
        CloseGuestMemfd("g"),
        _bound(_ONE),
        second_form(replace(_ONE, flags=GUEST_MEMFD).create()),
        source="kvm_gmem_bind",
        tags=("errno",),
    ),
    _memfd(
        "memfd-refuse-another-file",
        "An open file that KVM_CREATE_GUEST_MEMFD did not make is EINVAL.",
        _bound(_ONE, memfd="ordinary"),
        _made(),
        _bound(_ONE),
        mappings=(A, B, _ORDINARY),
        tags=("errno",),
    ),
    _memfd(
        "memfd-refuse-one-of-another-vm",
        "A guest_memfd belongs to the VM that made it, also when that VM is closed.",
        _made(),
        _bound(_ONE),
        NewVm(),
        _bound(_ONE),
        _made("own"),
        _bound(_ONE, memfd="own"),
        CloseGuestMemfd("g"),
        _bound(_TWO, memfd="own", page=2),
        tags=("errno", "lifetime"),
    ),
    _memfd(
        "memfd-refuse-past-its-end",
        "A slot ends where its guest_memfd ends, at the latest.",
        _made(),
        _bound(_ONE, page=7),
        _bound(_ONE, page=8),
        _bound(_ONE, page=1 << 40),
        _bound(replace(_ONE, pages=8), page=1),
        _bound(_ONE, page=6),
        tags=("errno",),
    ),
    _memfd(
        "memfd-refuse-bad-offsets",
        "The offset is page aligned and its end does not wrap, which a deletion must heed, too.",
        _made(),
        _bound(_ONE, offset=1),
        _bound(_ONE, offset=_SIZE - 1),
        _bound(_ONE, offset=(1 << 64) - _SIZE),
        _bound(_ONE, offset=1 << 63),
        _bound(_ONE),
        but(_bound(_ONE, offset=1), memory_size=0),
        but(_bound(_ONE, offset=_SIZE), memory_size=0),
        source="kvm_set_memory_region, kvm_gmem_bind",
        tags=("errno",),
    ),
    _memfd(
        "memfd-refuse-an-end-beyond-2-to-the-63",
        "An offset whose end is beyond 2^63 is past the end of every file, not before it.",
        _made(),
        _bound(_ONE, offset=(1 << 63) - _SIZE),
        _bound(_ONE),
        source="eba85fee7fc6; kvm_gmem_bind",
        tags=("errno",),
    ),
    _memfd(
        "memfd-refuse-overlapping-bindings",
        "No page of a guest_memfd belongs to two slots: the same, a part, around it, one page.",
        _made(),
        _bound(_ONE, page=2),
        _bound(_TWO, page=2),
        _bound(_TWO, page=1),
        _bound(_TWO, page=3),
        _bound(replace(_TWO, pages=8), page=0),
        _bound(_TWO, page=4),
        _bound(replace(_TWO, slot=3, gfn=0x108), page=0),
        tags=("errno", "overlap"),
    ),
    _memfd(
        "memfd-refuse-flags-beside-it",
        "GUEST_MEMFD excludes READONLY and LOG_DIRTY_PAGES even with a good file.",
        _made(),
        _bound(replace(_ONE, flags=READONLY)),
        _bound(replace(_ONE, flags=LOG_DIRTY_PAGES)),
        _bound(_ONE),
        source="check_memory_region_flags",
        tags=("errno", "flags"),
    ),
    _memfd(
        "memfd-refusal-binds-nothing",
        "A creation refused for its place, before or after the file is bound, leaves it free.",
        _made(),
        _bound(_ONE),
        _bound(replace(_TWO, gfn=0x101), page=2),
        _bound(replace(_TWO, gfn=1 << 40), page=2),
        _bound(replace(_TWO, gfn=(1 << 52) - 2), page=2),
        _bound(replace(_TWO, gfn=1 << 51), page=2),
        *(_unbound(slot) for slot in (_TWO, _ONE)),
        _bound(_TWO, page=2),
        source="kvm_set_memory_region: kvm_gmem_unbind",
        tags=("errno", "rollback"),
        survey="none",
    ),
)

_IMMUTABLE = (
    _memfd(
        "memfd-slot-cannot-change",
        "A slot with a guest_memfd is neither moved nor changed, nor set again as it stands.",
        _made(),
        _bound(_ONE),
        _bound(_ONE),
        _bound(replace(_ONE, gfn=0x108)),
        _bound(_ONE, page=2),
        _bound(replace(_ONE, hva=at("b"))),
        _bound(replace(_ONE, pages=1)),
        _bound(_ONE, memfd="ordinary"),
        second_form(_ONE.create()),
        second_form(_ONE.move(0x108)),
        _ONE.create(),
        _ONE.change(LOG_DIRTY_PAGES),
        _ONE.log(),
        _ONE.delete(),
        _ONE.create(),
        mappings=(A, B, _ORDINARY),
        source="9935df5333aa; kvm_set_memory_region",
        tags=("errno", "immutable"),
    ),
    _memfd(
        "memfd-slot-cannot-become-one",
        "GUEST_MEMFD cannot be set on a slot that is there, be it in place or by a move.",
        _made(),
        second_form(_ONE.create()),
        _bound(_ONE),
        _bound(replace(_ONE, gfn=0x108)),
        _bound(_TWO),
        source="9935df5333aa; kvm_set_memory_region",
        tags=("errno", "immutable"),
    ),
)

_CLOSING = (
    _memfd(
        "memfd-closed-before-its-slot",
        "The file goes first: the slot stays, cannot change, shares its memory, and is deleted.",
        _made(),
        _bound(_ONE),
        CloseGuestMemfd("g"),
        read(0x100),
        write(0x101, 0x0DDC0FFE),
        _bound(_ONE),
        _made("h"),
        _bound(_ONE, memfd="h"),
        _bound(_TWO, memfd="h"),
        _unbound(_ONE),
        _bound(_ONE, memfd="h", page=2),
        source="kvm_gmem_release, kvm_gmem_unbind",
        tags=("lifetime",),
    ),
    _memfd(
        "memfd-closed-after-its-slot",
        "The slot goes first, then the file.",
        _made(),
        _bound(_ONE),
        _unbound(_ONE),
        CloseGuestMemfd("g"),
        _ONE.create(),
        source="kvm_gmem_release, kvm_gmem_unbind",
        tags=("lifetime",),
    ),
    _memfd(
        "memfd-closed-after-its-vm",
        "A guest_memfd outlives its VM, and slots that hold its pages: closing it ends both.",
        _made(),
        _bound(_ONE),
        _bound(_TWO, page=4),
        NewVm(),
        _ONE.create(),
        CloseGuestMemfd("g"),
        _TWO.create(),
        source="kvm_gmem_release",
        tags=("lifetime",),
    ),
)

_SEEN = Slot(1, 0x100, at("shown"), pages=4)
_SHOW = (_made(flags=_SHARED), MapGuestMemfd("g", "shown"))


def _shared(name: str, why: str, *operations: AnyOperation, source: str = _CREATE) -> Scenario:
    return _memfd(
        name,
        why,
        *operations,
        source=source,
        mappings=(A, _SHOWN, _OTHER_SHOWN),
        needs=("guest_memfd_shared",),
        tags=("mmap",),
    )


_SHARING = (
    _memfd(
        "memfd-refuse-to-be-mapped",
        "A guest_memfd that was made without MMAP cannot be mapped: ENODEV.",
        _made(),
        MapGuestMemfd("g", "shown"),
        MapGuestMemfd("g", "shown", "private"),
        mappings=(_SHOWN,),
        source="kvm_gmem_mmap",
        tags=("errno", "mmap"),
    ),
    _memfd(
        "memfd-mapped-but-private",
        "With MMAP alone it is mapped, bound and deleted, though the host may not touch it.",
        _made(flags=MEMFD_MMAP),
        MapGuestMemfd("g", "shown", "private"),
        MapGuestMemfd("g", "shown"),
        _bound(_SEEN),
        _unbound(_SEEN),
        _bound(_SEEN, page=4),
        CloseGuestMemfd("g"),
        mappings=(_SHOWN,),
        needs=("guest_memfd_mmap",),
        source=_CREATE,
        tags=("errno", "mmap"),
        survey="none",
    ),
    _shared(
        "memfd-shared-with-the-host",
        "Guest and host see one memory: every page of the file, whichever writes to it.",
        *_SHOW,
        _bound(_SEEN),
        write(0x100, 0xCAFE0001),
        Inspect(),
        HostWrite(at("shown", 1), 0xCAFE0002),
        read(0x101, 0),
    ),
    _shared(
        "memfd-shared-parts-in-another-order",
        "Slots show the part of the file that they are bound to, wherever they lie.",
        *_SHOW,
        _bound(Slot(1, 0x104, at("shown"), pages=2)),
        _bound(Slot(2, 0x100, at("shown", 6), pages=2), page=6),
        _bound(Slot(3, 0x102, at("shown", 3), pages=2), page=3),
        _unbound(Slot(2, 0x100, at("shown"))),
        _bound(Slot(2, 0x106, at("shown", 5), pages=3), page=5),
        Inspect(),
    ),
    _shared(
        "memfd-shared-content-stays-with-the-file",
        "Deleted and bound elsewhere, the file shows what the guest wrote before.",
        *_SHOW,
        _bound(_SEEN),
        write(0x102, 0x5AFE5AFE),
        _unbound(_SEEN),
        _bound(Slot(2, 0x202, at("shown", 2)), page=2),
        read(0x202),
    ),
    _shared(
        "memfd-shared-by-two-files",
        "Two files in one VM are two memories.",
        *_SHOW,
        _made("h", flags=_SHARED),
        MapGuestMemfd("h", "other-shown"),
        _bound(Slot(1, 0x100, at("shown"), pages=2)),
        _bound(Slot(2, 0x102, at("other-shown"), pages=2), memfd="h"),
    ),
    _shared(
        "memfd-shared-and-closed",
        "The host's mapping keeps a closed file: guest and host go on, new slots are EBADF.",
        *_SHOW,
        _bound(_SEEN),
        CloseGuestMemfd("g"),
        write(0x100, 0x0B5E55ED),
        _bound(Slot(2, 0x108, at("shown", 4)), page=4),
        _unbound(_SEEN),
        HostWrite(at("shown", 1), 0x0B5E55EE),
        source="kvm_gmem_release",
    ),
    _shared(
        "memfd-shared-and-vm-closed",
        "The host's mapping outlives VM and slot; the next VM takes it as ordinary memory.",
        *_SHOW,
        _bound(_SEEN),
        write(0x100, 0x0B5E55ED),
        NewVm(),
        _SEEN.create(),
        read(0x100),
        source="kvm_gmem_release",
    ),
)

SCENARIOS = (*_MAKING, *_BINDING, *_REFUSING, *_IMMUTABLE, *_CLOSING, *_SHARING)
"""All scenarios whose point is a guest_memfd."""
