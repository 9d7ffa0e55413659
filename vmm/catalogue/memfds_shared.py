"""Slots whose guest_memfd holds shared memory, which the host also maps."""

from vmm.catalogue._build import A, Slot, at, read, write
from vmm.catalogue._memfds import (
    CREATE,
    OTHER_SHOWN,
    SHARED,
    SHOWN,
    bound,
    made,
    memfd_scenario,
    unbound,
)
from vmm.scenario.operations import (
    MEMFD_MMAP,
    AnyOperation,
    CloseGuestMemfd,
    HostWrite,
    Inspect,
    MapGuestMemfd,
    NewVm,
    Scenario,
)

_SEEN = Slot(1, 0x100, at("shown"), pages=4)
_SHOW = (made(flags=SHARED), MapGuestMemfd("g", "shown"))


def _shared(name: str, why: str, *operations: AnyOperation, source: str = CREATE) -> Scenario:
    return memfd_scenario(
        name,
        why,
        *operations,
        source=source,
        mappings=(A, SHOWN, OTHER_SHOWN),
        needs=("guest_memfd_shared",),
        tags=("mmap",),
    )


SCENARIOS = (
    memfd_scenario(
        "memfd-refuse-to-be-mapped",
        "A guest_memfd that was created without MMAP cannot be mapped: ENODEV.",
        made(),
        MapGuestMemfd("g", "shown"),
        MapGuestMemfd("g", "shown", "private"),
        mappings=(SHOWN,),
        source="kvm_gmem_mmap",
        tags=("errno", "mmap"),
    ),
    memfd_scenario(
        "memfd-mapped-but-private",
        "A guest_memfd with MMAP alone is mapped, bound and unbound, though the host may not "
        "touch it.",
        made(flags=MEMFD_MMAP),
        MapGuestMemfd("g", "shown", "private"),
        MapGuestMemfd("g", "shown"),
        bound(_SEEN),
        unbound(_SEEN),
        bound(_SEEN, page=4),
        CloseGuestMemfd("g"),
        mappings=(SHOWN,),
        needs=("guest_memfd_mmap",),
        source=CREATE,
        tags=("errno", "mmap"),
        survey="none",
    ),
    _shared(
        "memfd-shared-with-the-host",
        "Guest and host see the same memory in every page of the file, whichever of them writes.",
        *_SHOW,
        bound(_SEEN),
        write(0x100, 0xCAFE0001),
        Inspect(),
        HostWrite(at("shown", 1), 0xCAFE0002),
        read(0x101, 0),
    ),
    _shared(
        "memfd-shared-parts-in-another-order",
        "Slots show the part of the file that they are bound to, at any gfn.",
        *_SHOW,
        bound(Slot(1, 0x104, at("shown"), pages=2)),
        bound(Slot(2, 0x100, at("shown", 6), pages=2), page=6),
        bound(Slot(3, 0x102, at("shown", 3), pages=2), page=3),
        unbound(Slot(2, 0x100, at("shown"))),
        bound(Slot(2, 0x106, at("shown", 5), pages=3), page=5),
        Inspect(),
    ),
    _shared(
        "memfd-shared-content-stays-with-the-file",
        "When its slot is deleted, and it is bound elsewhere, the file shows what the guest wrote.",
        *_SHOW,
        bound(_SEEN),
        write(0x102, 0x5AFE5AFE),
        unbound(_SEEN),
        bound(Slot(2, 0x202, at("shown", 2)), page=2),
        read(0x202),
    ),
    _shared(
        "memfd-shared-by-two-files",
        "Two guest_memfds of one VM show different memory.",
        *_SHOW,
        made("h", flags=SHARED),
        MapGuestMemfd("h", "other-shown"),
        bound(Slot(1, 0x100, at("shown"), pages=2)),
        bound(Slot(2, 0x102, at("other-shown"), pages=2), memfd="h"),
    ),
    _shared(
        "memfd-shared-and-closed",
        "The host's mapping keeps a closed file: guest and host still use it, new slots are EBADF.",
        *_SHOW,
        bound(_SEEN),
        CloseGuestMemfd("g"),
        write(0x100, 0x0B5E55ED),
        bound(Slot(2, 0x108, at("shown", 4)), page=4),
        unbound(_SEEN),
        HostWrite(at("shown", 1), 0x0B5E55EE),
        source="kvm_gmem_release",
    ),
    _shared(
        "memfd-shared-and-vm-closed",
        "The host's mapping outlives VM and slot; the next VM takes it as ordinary memory.",
        *_SHOW,
        bound(_SEEN),
        write(0x100, 0x0B5E55ED),
        NewVm(),
        _SEEN.create(),
        read(0x100),
        source="kvm_gmem_release",
    ),
)
"""All scenarios about a guest_memfd that the host maps."""
