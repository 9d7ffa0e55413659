"""Slots with a guest_memfd: what can be created, bound and closed, and in which order."""

from dataclasses import replace

import msgspec

from vmm.catalogue._build import A, B, Slot, at, but, read, second_form, write
from vmm.catalogue._memfds import (
    CREATE,
    ONE,
    ORDINARY,
    SHARED,
    TWO,
    bound,
    made,
    memfd_scenario,
    unbound,
)
from vmm.scenario.operations import (
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    CloseGuestMemfd,
    CreateGuestMemfd,
    Mapping,
    NewVm,
    ResizeGuestMemfd,
    Scenario,
)

_MAKING = (
    memfd_scenario(
        "memfd-create-and-close",
        "A guest_memfd of one page, and a large unused one, are created and closed.",
        made("small", 1),
        made("large", 1 << 24),
        CloseGuestMemfd("small"),
        CloseGuestMemfd("large"),
        source=CREATE,
    ),
    memfd_scenario(
        "memfd-refuse-sizes",
        "The size of a guest_memfd is a multiple of the page size, not 0, and fits into a signed "
        "64-bit number.",
        CreateGuestMemfd("none", 0),
        CreateGuestMemfd("byte", 1),
        CreateGuestMemfd("short", PAGE_SIZE_BYTES - 1),
        CreateGuestMemfd("long", PAGE_SIZE_BYTES + 1),
        CreateGuestMemfd("negative", 1 << 63),
        CreateGuestMemfd("all", (1 << 64) - PAGE_SIZE_BYTES),
        *(made(f"unknown-{bit}", 1, 1 << bit) for bit in (31, 32, 63)),
        bound(ONE, memfd="none"),
        source="kvm_gmem_create",
        tags=("errno",),
    ),
    memfd_scenario(
        "memfd-keeps-its-size",
        "The size of a guest_memfd is fixed: no ftruncate changes it, and slots bind what they "
        "bound before, or none beyond its end.",
        made(),
        bound(ONE),
        *(ResizeGuestMemfd("g", pages * PAGE_SIZE_BYTES) for pages in (0, 1, 7, 8, 9, 1 << 24)),
        *(ResizeGuestMemfd("g", size) for size in (1, (1 << 63) - 1)),
        bound(TWO, 6),
        bound(replace(TWO, slot=3, gfn=0x108), 8),
        unbound(ONE),
        bound(ONE),
        CloseGuestMemfd("g"),
        ResizeGuestMemfd("g", PAGE_SIZE_BYTES),
        source="kvm_gmem_setattr",
        tags=("errno",),
    ),
    memfd_scenario(
        "memfd-flags-as-the-capability-says",
        "Each flag is taken or refused as KVM_CAP_GUEST_MEMFD_FLAGS says; unknown ones are "
        "refused.",
        *(made(f"bit-{bit}", 1, 1 << bit) for bit in (0, 1, 2, 3, 31, 63)),
        made("both", 1, SHARED),
        source=CREATE,
        tags=("errno", "flags"),
    ),
)

_BINDING = (
    memfd_scenario(
        "memfd-bind-and-delete",
        "A slot with a guest_memfd is created and deleted; its shared memory is at its hva.",
        made(),
        bound(ONE),
        unbound(ONE),
        bound(ONE),
        ONE.delete(),
    ),
    memfd_scenario(
        "memfd-bind-parts-of-every-size-again",
        "Deleting a slot unbinds all of its part of the file: every page can be bound again.",
        made(),
        *(
            operation
            for page, pages in ((0, 3), (1, 3), (3, 5), (1, 7), (0, 8), (5, 1), (2, 6))
            for operation in (
                bound(Slot(1, 0x100, at("a"), pages), page),
                Slot(1, 0x100, at("a"), pages).delete(),
                *(
                    step
                    for each in range(page, page + pages)
                    for step in (bound(Slot(2, 0x110, at("a")), each), unbound(TWO))
                ),
            )
        ),
        survey="none",
    ),
    memfd_scenario(
        "memfd-bind-parts-over-64-pages-again",
        "Deleting a slot of more than 64 pages unbinds its part of the file to the end.",
        made(pages=130),
        *(
            operation
            for page, pages in ((0, 65), (1, 64), (0, 129), (63, 2), (64, 65), (0, 130))
            for operation in (
                bound(Slot(1, 0x100, at("long"), pages), page),
                Slot(1, 0x100, at("long"), pages).delete(),
                *(
                    step
                    for each in sorted({page, page + pages // 2, page + pages - 1})
                    for step in (bound(Slot(2, 0x200, at("long")), each), unbound(TWO))
                ),
            )
        ),
        mappings=(Mapping("long", 130),),
        survey="none",
        source="kvm_gmem_unbind: xa_store_range, whose entries end at multiples of 64",
    ),
    memfd_scenario(
        "memfd-bind-the-whole-file-and-its-parts",
        "Any page-aligned part can be bound, the last page included, to several slots at once.",
        made(),
        bound(Slot(1, 0x100, at("a"), pages=8)),
        unbound(ONE),
        bound(ONE, page=6),
        bound(TWO, page=4),
        bound(Slot(3, 0x108, at("a", 4)), page=0),
        bound(Slot(4, 0x109, at("a", 5)), page=3),
    ),
    memfd_scenario(
        "memfd-two-files",
        "Slots of two guest_memfds may be bound at the same offset.",
        made("g"),
        made("h"),
        bound(ONE, memfd="g"),
        bound(TWO, memfd="h"),
        unbound(ONE),
        bound(replace(ONE, gfn=0x108), page=2, memfd="h"),
    ),
    memfd_scenario(
        "memfd-flag-clear-ignores-the-file",
        "Without GUEST_MEMFD the second form acts like the first: file and offset are ignored.",
        msgspec.structs.replace(
            second_form(ONE.create()), guest_memfd="never", guest_memfd_offset=1
        ),
        made("never"),
        second_form(ONE.move(0x108)),
        second_form(replace(ONE, gfn=0x108).change(LOG_DIRTY_PAGES)),
    ),
    memfd_scenario(
        "memfd-stays-behind-when-its-slot-goes",
        "The pages of the file that a deleted slot held can be bound again, by any id and at any "
        "gfn.",
        made(),
        bound(ONE, page=2),
        unbound(ONE),
        bound(TWO, page=3),
        bound(replace(ONE, gfn=0x108), page=1),
    ),
)

_REFUSING = (
    memfd_scenario(
        "memfd-refuse-what-is-not-open",
        "A file descriptor that is closed, or was never opened, is EBADF.",
        bound(ONE, memfd="g"),
        made(),
        CloseGuestMemfd("g"),
        bound(ONE),
        second_form(replace(ONE, flags=GUEST_MEMFD).create()),
        source="kvm_gmem_bind",
        tags=("errno",),
    ),
    memfd_scenario(
        "memfd-refuse-another-file",
        "An open file that KVM_CREATE_GUEST_MEMFD did not create is EINVAL.",
        bound(ONE, memfd="ordinary"),
        made(),
        bound(ONE),
        mappings=(A, B, ORDINARY),
        tags=("errno",),
    ),
    memfd_scenario(
        "memfd-refuse-one-of-another-vm",
        "A guest_memfd belongs to the VM that created it, even after that VM is closed.",
        made(),
        bound(ONE),
        NewVm(),
        bound(ONE),
        made("own"),
        bound(ONE, memfd="own"),
        CloseGuestMemfd("g"),
        bound(TWO, memfd="own", page=2),
        tags=("errno", "lifetime"),
    ),
    memfd_scenario(
        "memfd-refuse-an-unbound-one-of-another-vm",
        "A guest_memfd of another VM is refused even if no slot is bound to it.",
        made(),
        bound(ONE, page=6),
        NewVm(),
        bound(ONE),
        bound(TWO, page=2),
        tags=("errno", "lifetime"),
    ),
    memfd_scenario(
        "memfd-refuse-past-its-end",
        "A slot beyond the end of its guest_memfd is EINVAL.",
        made(),
        bound(ONE, page=7),
        bound(ONE, page=8),
        bound(ONE, page=1 << 40),
        bound(replace(ONE, pages=8), page=1),
        bound(ONE, page=6),
        tags=("errno",),
    ),
    memfd_scenario(
        "memfd-refuse-bad-offsets",
        "guest_memfd_offset is page aligned and its end does not wrap, on deletion too.",
        made(),
        bound(ONE, offset=1),
        bound(ONE, offset=PAGE_SIZE_BYTES - 1),
        bound(ONE, offset=(1 << 64) - PAGE_SIZE_BYTES),
        bound(ONE, offset=1 << 63),
        bound(ONE),
        but(bound(ONE, offset=1), memory_size=0),
        but(bound(ONE, offset=PAGE_SIZE_BYTES), memory_size=0),
        source="kvm_set_memory_region, kvm_gmem_bind",
        tags=("errno",),
    ),
    memfd_scenario(
        "memfd-refuse-an-end-beyond-2-to-the-63",
        "An offset whose end is beyond 2^63 is past the end of every file.",
        made(),
        bound(ONE, offset=(1 << 63) - PAGE_SIZE_BYTES),
        bound(ONE),
        source="eba85fee7fc6; kvm_gmem_bind",
        tags=("errno",),
    ),
    memfd_scenario(
        "memfd-refuse-overlapping-bindings",
        "Two slots cannot be bound to the same page of a guest_memfd, however they overlap.",
        made(),
        bound(ONE, page=2),
        bound(TWO, page=2),
        bound(TWO, page=1),
        bound(TWO, page=3),
        bound(replace(TWO, pages=8), page=0),
        bound(TWO, page=4),
        bound(replace(TWO, slot=3, gfn=0x108), page=0),
        tags=("errno", "overlap"),
    ),
    memfd_scenario(
        "memfd-refuse-flags-beside-it",
        "GUEST_MEMFD excludes READONLY and LOG_DIRTY_PAGES even with a valid file.",
        made(),
        bound(replace(ONE, flags=READONLY)),
        bound(replace(ONE, flags=LOG_DIRTY_PAGES)),
        bound(ONE),
        source="check_memory_region_flags",
        tags=("errno", "flags"),
    ),
    memfd_scenario(
        "memfd-refusal-binds-nothing",
        "A creation refused for its gfn, before or after the file is bound, leaves the file free.",
        made(),
        bound(ONE),
        bound(replace(TWO, gfn=0x101), page=2),
        bound(replace(TWO, gfn=1 << 40), page=2),
        bound(replace(TWO, gfn=(1 << 52) - 2), page=2),
        bound(replace(TWO, gfn=1 << 51), page=2),
        *(unbound(slot) for slot in (TWO, ONE)),
        bound(TWO, page=2),
        source="kvm_set_memory_region: kvm_gmem_unbind",
        tags=("errno", "rollback"),
        survey="none",
    ),
)

_IMMUTABLE = (
    memfd_scenario(
        "memfd-slot-cannot-change",
        "A slot with a guest_memfd cannot be moved, changed, or set again with the same values.",
        made(),
        bound(ONE),
        bound(ONE),
        bound(replace(ONE, gfn=0x108)),
        bound(ONE, page=2),
        bound(replace(ONE, hva=at("b"))),
        bound(replace(ONE, pages=1)),
        bound(ONE, memfd="ordinary"),
        second_form(ONE.create()),
        second_form(ONE.move(0x108)),
        ONE.create(),
        ONE.change(LOG_DIRTY_PAGES),
        ONE.log(),
        ONE.delete(),
        ONE.create(),
        mappings=(A, B, ORDINARY),
        source="9935df5333aa; kvm_set_memory_region",
        tags=("errno", "immutable"),
    ),
    memfd_scenario(
        "memfd-slot-cannot-become-one",
        "GUEST_MEMFD cannot be set on an existing slot, neither in place nor by a move.",
        made(),
        second_form(ONE.create()),
        bound(ONE),
        bound(replace(ONE, gfn=0x108)),
        bound(TWO),
        source="9935df5333aa; kvm_set_memory_region",
        tags=("errno", "immutable"),
    ),
)

_CLOSING = (
    memfd_scenario(
        "memfd-closed-before-its-slot",
        "If the file is closed first, the slot stays, cannot change, shows its shared memory, "
        "and can be deleted.",
        made(),
        bound(ONE),
        CloseGuestMemfd("g"),
        read(0x100),
        write(0x101, 0x0DDC0FFE),
        bound(ONE),
        made("h"),
        bound(ONE, memfd="h"),
        bound(TWO, memfd="h"),
        unbound(ONE),
        bound(ONE, memfd="h", page=2),
        source="kvm_gmem_release, kvm_gmem_unbind",
        tags=("lifetime",),
    ),
    memfd_scenario(
        "memfd-closed-after-its-slot",
        "The slot is deleted first, then the file is closed.",
        made(),
        bound(ONE),
        unbound(ONE),
        CloseGuestMemfd("g"),
        ONE.create(),
        source="kvm_gmem_release, kvm_gmem_unbind",
        tags=("lifetime",),
    ),
    memfd_scenario(
        "memfd-closed-after-its-vm",
        "A guest_memfd outlives its VM and the slots that hold its pages, until it is closed.",
        made(),
        bound(ONE),
        bound(TWO, page=4),
        NewVm(),
        ONE.create(),
        CloseGuestMemfd("g"),
        TWO.create(),
        source="kvm_gmem_release",
        tags=("lifetime",),
    ),
)

_ORDINARY_VMS = (*_MAKING, *_BINDING, *_REFUSING, *_IMMUTABLE, *_CLOSING)


def _in_a_private_vm(scenario: Scenario) -> Scenario:
    """Return the same on a VM with private memory, which has guest_memfds since Linux 6.8.

    Linux 6.8 to 6.17 refuse them to an ordinary VM, so none of the above could run there.
    """
    first, _, rest = scenario.why.partition(" ")
    said = f"{first if first.isupper() and len(first) > 1 else first.lower()} {rest}"
    return msgspec.structs.replace(
        scenario,
        name=f"private-vm-{scenario.name}",
        why=f"On a VM with private memory: {said}",
        needs=("user_memory2", "sw_protected"),
        vm_type=1,
    )


def _fits_a_private_vm(scenario: Scenario) -> bool:
    """Whether each guest_memfd is one that such a VM can create."""
    return not any(
        isinstance(op, CreateGuestMemfd) and op.flags & SHARED for op in scenario.operations
    )


SCENARIOS = (
    *_ORDINARY_VMS,
    *(_in_a_private_vm(each) for each in _ORDINARY_VMS if _fits_a_private_vm(each)),
)
"""All scenarios about creating, binding and closing a guest_memfd."""
