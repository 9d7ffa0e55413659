"""Races with what the host does to its memory, with guest_memfds, and with vCPUs that migrate."""

import msgspec

from vmm.catalogue._build import A, B, Slot, at, second_form
from vmm.catalogue._racing import change, host, race, reader, writer
from vmm.scenario.operations import (
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    CloseGuestMemfd,
    CreateGuestMemfd,
    HostThread,
    PunchGuestMemfd,
    Race,
    Scenario,
    SetUserMemoryRegion2,
)

_GFN = 0x100
_ONE = Slot(1, _GFN, at("a"), pages=2)
_NEXT = Slot(2, _GFN + 8, at("b", 4), pages=2)
_FILES = 8
_BOUND = Slot(5, _GFN + 0x20, at("b"), 1)


def _bound(number: int) -> SetUserMemoryRegion2:
    made = second_form(_BOUND.change(GUEST_MEMFD))
    return msgspec.structs.replace(made, guest_memfd=f"file{number}")


_VCPUS = (reader(0, _GFN, _GFN + 1), writer(1, _GFN, _GFN + 1))

SCENARIOS = (
    race(
        "write-protect",
        "Memory that the host may only read is written by no guest from then on.",
        (_ONE.create(),),
        (
            host(
                change("write_protect", "a", 0),
                change("allow", "a", 0),
                change("write_protect", "a", 0, 2),
                change("allow", "a", 0, 2),
                rounds=15,
            ),
        ),
        _VCPUS,
        source="KVM_CAP_SYNC_MMU; mmu_invalidate_retry_gfn",
        needs=("sync_mmu",),
    ),
    race(
        "map-over",
        "Fresh memory that is mapped over pages in use is what guests find from then on.",
        (_ONE.create(),),
        (host(change("map_fresh", "a", 0), change("map_fresh", "a", 0, 2), rounds=20),),
        _VCPUS,
        source="KVM_CAP_SYNC_MMU; mmu_invalidate_retry_gfn",
        needs=("sync_mmu",),
    ),
    race(
        "page-out",
        "Pages that the host pages out, and gives to the guest again, are what they were.",
        (_ONE.create(),),
        (
            host(change("page_out", "a", 0, 2), change("drop", "a", 1), rounds=20),
            host(_NEXT.create(), _NEXT.delete(), rounds=10),
        ),
        _VCPUS,
        source="KVM_CAP_SYNC_MMU; mmu_notifier_clear_flush_young",
        needs=("sync_mmu",),
    ),
    race(
        "migrating",
        "A vCPU that goes from thread to thread meets what stands, as if it were in one.",
        (_ONE.create(),),
        (host(_ONE.move(_GFN + 4), _ONE.create(), _ONE.delete(), _ONE.create(), rounds=10),),
        (
            msgspec.structs.replace(reader(0, _GFN, _GFN + 4, _GFN + 5), migrates=1),
            msgspec.structs.replace(writer(1, _GFN + 1, _GFN + 5), migrates=2),
        ),
        source="vcpu_load; kvm_arch_vcpu_load",
    ),
    Scenario(
        name="racing-closed-guest-memfd",
        why="A guest_memfd is closed, or punched, while a slot that is bound to it goes.",
        source="ae431059e75d; kvm_gmem_release, kvm_gmem_unbind",
        tags=("racing", "slow"),
        needs=("guest_memfd", "user_memory2"),
        mappings=(A, B),
        survey="none",
        operations=(
            _ONE.create(),
            *(
                op
                for number in range(_FILES)
                for op in (
                    CreateGuestMemfd(f"file{number}", 2 * PAGE_SIZE_BYTES),
                    _bound(number),
                    Race(
                        (
                            HostThread((CloseGuestMemfd(f"file{number}"),)),
                            HostThread((_BOUND.delete(),)),
                        ),
                        (reader(0, _GFN, _GFN + 1),),
                    ),
                )
            ),
        ),
    ),
    Scenario(
        name="racing-punched-guest-memfd",
        why="Holes are punched in a guest_memfd while slots that are bound to it come and go.",
        source="kvm_gmem_punch_hole, kvm_gmem_unbind",
        tags=("racing", "slow"),
        needs=("guest_memfd", "user_memory2"),
        mappings=(A, B),
        survey="none",
        vcpus=2,
        operations=(
            _ONE.create(),
            CreateGuestMemfd("file0", 2 * PAGE_SIZE_BYTES),
            CreateGuestMemfd("file1", 2 * PAGE_SIZE_BYTES),
            Race(
                (
                    host(
                        _bound(0),
                        PunchGuestMemfd("file0", 0, PAGE_SIZE_BYTES),
                        _BOUND.delete(),
                        rounds=20,
                        pause=0,
                    ),
                    host(PunchGuestMemfd("file1", 0, 2 * PAGE_SIZE_BYTES), rounds=60, pause=0),
                ),
                (reader(0, _GFN, _GFN + 1), writer(1, _GFN)),
            ),
        ),
    ),
)
"""All races of this kind."""
