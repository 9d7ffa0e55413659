"""Races with what the host does to its memory, with guest_memfds, and with vCPUs that migrate."""

import msgspec

from vmm.catalogue._build import A, B, Slot, at, read, second_form
from vmm.catalogue._memfds import to_private, to_shared
from vmm.catalogue._races import change, host, race, reader, writer
from vmm.scenario.operations import (
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    ChangeHostMemory,
    CloseGuestMemfd,
    CreateGuestMemfd,
    GetDirtyLog,
    GuestThread,
    HostChangeKind,
    HostThread,
    HostWrite,
    Inspect,
    KvmclockCtrl,
    Mapping,
    Place,
    PunchGuestMemfd,
    Race,
    Scenario,
    SetClockMsr,
    SetUserMemoryRegion2,
    Touch,
)

_GFN = 0x100
_ONE = Slot(1, _GFN, at("a"), pages=2)
_NEXT = Slot(2, _GFN + 8, at("b", 4), pages=2)
_FILES = 8
_BOUND = Slot(5, _GFN + 0x20, at("b"), 1)


def _bound(number: int) -> SetUserMemoryRegion2:
    made = second_form(_BOUND.change(GUEST_MEMFD))
    return msgspec.structs.replace(made, guest_memfd=f"file{number}")


_LOGGED = Slot(1, _GFN, at("a"), 2, LOG_DIRTY_PAGES)
_PLAIN = Slot(1, _GFN, at("a"), 2)
_CLOCK_GPA = (_GFN + 1) * PAGE_SIZE_BYTES + 0x400
_CLOCKS = (
    SetClockMsr("steal_time", _CLOCK_GPA),
    SetClockMsr("system_time", _CLOCK_GPA + 0x80, vcpu=1),
)
_LOOKS = (KvmclockCtrl(1), read(_GFN + 8), read(_GFN + 8, vcpu=1), Inspect())
"""Both vCPUs run, and mappings are inspected for the writes of their clocks."""


def _private_one() -> SetUserMemoryRegion2:
    made = second_form(_ONE.change(GUEST_MEMFD))
    return msgspec.structs.replace(made, guest_memfd="file0")


_VCPUS = (reader(0, _GFN, _GFN + 1), writer(1, _GFN, _GFN + 1))

_FILE = Mapping("file", 4, "memfd")
_AGAIN = Mapping("again", 4, "memfd", of="file")
_FIRST = Slot(1, _GFN, at("file"), pages=4)
_SECOND = Slot(2, _GFN + 8, at("again"), pages=4)
_SECOND_ID = Slot(3, _GFN + 16, at("file"), pages=4)
_THIRD = Slot(3, _GFN + 16, at("a", 2), pages=2)
_BOTH = (_GFN, _GFN + 8, _GFN + 1, _GFN + 9)


def _paged(how: HostChangeKind, name: str, why: str, source: str) -> Scenario:
    """Let userfaultfd take charge of one page and of two, in turn, while vCPUs use them."""
    return race(
        name,
        why,
        (_ONE.create(),),
        (
            host(
                change(how, "a", 0),
                change("settle", "a", 0),
                change(how, "a", 0, 2),
                change("settle", "a", 0, 2),
                rounds=12,
            ),
            host(_NEXT.create(), _NEXT.delete(), rounds=10),
        ),
        _VCPUS,
        source=f"KVM_CAP_SYNC_MMU; {source}",
        needs=("sync_mmu",),
    )


def _over(page: int, source: int, pages: int = 1) -> ChangeHostMemory:
    """Map pages of the file over pages of the mapping `a`."""
    return ChangeHostMemory(at("a", page), pages, "map_file", at("file", source))


SCENARIOS = (
    race(
        "two-mappings-of-one-file",
        "A write to, or hole in, a file through one mapping is seen in the other, but pages that "
        "are unmapped from one stay mapped in the other.",
        (_FIRST.create(), _SECOND.create()),
        (
            host(change("punch", "file", 0), change("punch", "file", 1, 2), rounds=15),
            host(change("unmap", "again", 0, 2), change("map", "again", 0, 2), rounds=15),
            host(HostWrite(at("file", 1), 7), _FIRST.move(_GFN + 4), _FIRST.create(), rounds=15),
        ),
        (
            writer(0, _GFN, _GFN + 9),
            GuestThread(
                tuple(
                    Touch(gfn * PAGE_SIZE_BYTES + offset, vcpu=1)
                    for gfn in _BOTH
                    for offset in (0x200, 0)
                )
            ),
        ),
        source="KVM_CAP_SYNC_MMU; mmu_notifier_invalidate_range_start on each mapping of a file",
        mappings=(_FILE, _AGAIN),
        needs=("sync_mmu",),
    ),
    race(
        "truncate",
        "What a file no longer holds is gone from each of its mappings once ftruncate returns, "
        "and zeros once the file holds it again.",
        (_FIRST.create(), _SECOND.create()),
        (
            host(
                change("truncate", "file", 2, 2),
                change("truncate", "file", 1, 3),
                change("extend", "file", 1, 3),
                change("truncate", "file", 0, 4),
                change("extend", "file", 0, 4),
                rounds=12,
            ),
            host(_SECOND.move(_GFN + 12), _SECOND.move(_GFN + 8), rounds=0),
        ),
        (
            writer(0, _GFN, _GFN + 2, _GFN + 9),
            GuestThread(
                tuple(
                    Touch(gfn * PAGE_SIZE_BYTES + offset, vcpu=1)
                    for gfn in (_GFN, _GFN + 3, _GFN + 8, _GFN + 9)
                    for offset in (0x200, 0)
                )
            ),
        ),
        source="KVM_CAP_SYNC_MMU; unmap_mapping_range: each mapping of a file",
        mappings=(_FILE, _AGAIN),
        needs=("sync_mmu",),
    ),
    race(
        "truncate-and-log",
        "A file that is truncated and extended under a logged slot loses no write from its log.",
        (Slot(1, _GFN, at("file"), 4, LOG_DIRTY_PAGES).create(),),
        (
            host(change("truncate", "file", 2, 2), change("extend", "file", 2, 2), rounds=12),
            host(GetDirtyLog(1), rounds=0, pause=1),
        ),
        (writer(0, _GFN, _GFN + 2), writer(1, _GFN + 1, _GFN + 3)),
        GetDirtyLog(1),
        source="KVM_CAP_SYNC_MMU; mark_page_dirty_in_slot",
        mappings=(_FILE,),
        needs=("sync_mmu",),
    ),
    race(
        "write-protect",
        "No guest writes to memory once the host may only read it.",
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
        "forked-child",
        "A page that a guest writes while a forked child shares it is copied: guests go on with "
        "the copy, and the child never sees a write.",
        (_ONE.create(),),
        (host(change("fork", "a", 0), change("reap", "a", 0), rounds=6, pause=1),),
        _VCPUS,
        source="KVM_CAP_SYNC_MMU; hva_to_pfn: FOLL_WRITE; do_wp_page",
        needs=("sync_mmu",),
    ),
    race(
        "forked-child-and-log",
        "Pages that are copied for a forked child while they are logged and moved stay logged.",
        (_LOGGED.create(),),
        (
            host(change("fork", "a", 0), change("reap", "a", 0), rounds=4),
            host(
                GetDirtyLog(1),
                _LOGGED.move(_GFN + 4),
                _LOGGED.move(_GFN),
                rounds=0,
                pause=1,
            ),
        ),
        _VCPUS,
        source="KVM_CAP_SYNC_MMU; mmu_invalidate_retry_gfn; mark_page_dirty_in_slot",
        needs=("sync_mmu",),
    ),
    race(
        "map-over",
        "Once fresh memory is mapped over pages in use, guests see that memory.",
        (_ONE.create(),),
        (host(change("map_fresh", "a", 0), change("map_fresh", "a", 0, 2), rounds=20),),
        _VCPUS,
        source="KVM_CAP_SYNC_MMU; mmu_invalidate_retry_gfn",
        needs=("sync_mmu",),
    ),
    race(
        "file-over-memory",
        "Once pages of a file are mapped over memory in use, guests see the file; what they write "
        "there is in the file, and not in the memory that comes next.",
        (_ONE.create(), _SECOND_ID.create()),
        (
            host(
                _over(0, 1),
                change("map_fresh", "a", 0),
                _over(0, 0, 2),
                _over(0, 2, 2),
                change("unmap", "a", 0, 2),
                change("map", "a", 0, 2),
                rounds=12,
            ),
            host(HostWrite(at("file", 1), 7), _NEXT.create(), _NEXT.delete(), rounds=10),
        ),
        (writer(0, _GFN, _GFN + 1), writer(1, _GFN, _GFN + 16, _GFN + 17, _GFN + 18)),
        source="KVM_CAP_SYNC_MMU; mmu_invalidate_retry_gfn",
        mappings=(A, B, _FILE),
        needs=("sync_mmu",),
    ),
    race(
        "file-over-memory-and-log",
        "A slot under which a file and fresh memory take turns loses no write from its log, "
        "wherever it is moved.",
        (_LOGGED.create(),),
        (
            host(_over(0, 1, 2), change("map", "a", 0, 2), rounds=12),
            host(
                *(GetDirtyLog(1), _LOGGED.move(_GFN + 4), GetDirtyLog(1), _LOGGED.move(_GFN)),
                rounds=0,
                pause=1,
            ),
        ),
        (writer(0, _GFN, _GFN + 4), writer(1, _GFN + 1, _GFN + 5)),
        GetDirtyLog(1),
        source="KVM_CAP_SYNC_MMU; mark_page_dirty_in_slot",
        mappings=(A, _FILE),
        needs=("sync_mmu",),
    ),
    race(
        "merged-pages",
        "While the kernel merges equal pages, and parts those that the host or a guest writes, "
        "guests see what was written last.",
        (_ONE.create(), Slot(2, _GFN + 8, at("a", 2), pages=4).create()),
        (
            host(
                change("map_fresh", "a", 0, 6),
                change("merge", "a", 0, 6),
                HostWrite(Place("a", 4 * PAGE_SIZE_BYTES + 0x300), 7),
                change("drop", "a", 1),
                rounds=3,
            ),
            host(_THIRD.create(), _THIRD.delete(), rounds=0),
        ),
        (
            writer(0, _GFN, _GFN + 1),
            GuestThread(tuple(read(_GFN + page, 0x300, 1) for page in (8, 9, 10, 11))),
        ),
        source="KVM_CAP_SYNC_MMU; write_protect_page; replace_page: mmu_notifier",
        needs=("sync_mmu", "ksm"),
    ),
    race(
        "page-out",
        "Pages that the host pages out, and in again, keep their content.",
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
        "memory-moved-away",
        "Once the host has moved pages elsewhere with mremap, guests no longer reach them; once "
        "they are back, they hold what was written last.",
        (_ONE.create(),),
        (
            host(
                change("move_away", "a", 0),
                change("move_back", "a", 0),
                change("move_away", "a", 0, 2),
                change("move_back", "a", 1),
                change("move_back", "a", 0),
                rounds=12,
            ),
            host(_NEXT.create(), _NEXT.delete(), rounds=10),
        ),
        _VCPUS,
        source="KVM_CAP_SYNC_MMU; move_page_tables: mmu_notifier_invalidate_range_start",
        needs=("sync_mmu",),
    ),
    race(
        "memory-moved-away-and-log",
        "What guests write to pages that the host moves away and back is in the dirty log.",
        (_LOGGED.create(),),
        (
            host(change("move_away", "a", 0, 2), change("move_back", "a", 0, 2), rounds=12),
            host(GetDirtyLog(1), rounds=0, pause=1),
        ),
        _VCPUS,
        GetDirtyLog(1),
        source="KVM_CAP_SYNC_MMU; mark_page_dirty_in_slot",
        needs=("sync_mmu",),
    ),
    _paged(
        "fetch_later",
        "pages-fetched-later",
        "Guests that meet a page for which userfaultfd is in charge wait until it is fetched, and "
        "go on with its content.",
        "userfaultfd.rst; hva_to_pfn: mmu_invalidate_retry_gfn",
    ),
    _paged(
        "guard",
        "guarded-pages",
        "Whatever a guest writes to pages that userfaultfd guards is held up first, and is there "
        "afterwards.",
        "userfaultfd.rst, Write Protect Notifications; change_protection",
    ),
    race(
        "migrating",
        "A vCPU that migrates between threads sees the current slots, as if it stayed in one.",
        (_ONE.create(),),
        (host(_ONE.move(_GFN + 4), _ONE.create(), _ONE.delete(), _ONE.create(), rounds=10),),
        (
            msgspec.structs.replace(reader(0, _GFN, _GFN + 4, _GFN + 5), migrates=1),
            msgspec.structs.replace(writer(1, _GFN + 1, _GFN + 5), migrates=2),
        ),
        source="vcpu_load; kvm_arch_vcpu_load",
    ),
    msgspec.structs.replace(
        race(
            "attributes",
            "While gpas become private and shared again, a vCPU sees the guest_memfd or the host's "
            "memory, each with its last content.",
            (CreateGuestMemfd("file0", 2 * PAGE_SIZE_BYTES), _private_one()),
            (
                host(to_private(_GFN, 2), to_shared(_GFN, 2), rounds=15),
                host(HostWrite(at("a", 1), 7), rounds=15),
            ),
            _VCPUS,
            source="api.rst 4.141; kvm_vm_set_mem_attributes, mmu_invalidate_retry_gfn",
            needs=("sw_protected", "guest_memfd", "user_memory2"),
            survey="none",
        ),
        vm_type=1,
    ),
    msgspec.structs.replace(
        race(
            "attributes-and-slots",
            "While a slot is deleted and created, and its gpas become private and shared, a vCPU "
            "stops, exits, or sees the current memory.",
            (CreateGuestMemfd("file0", 2 * PAGE_SIZE_BYTES), _private_one()),
            (
                host(
                    to_private(_GFN),
                    _ONE.delete(),
                    to_shared(_GFN),
                    _private_one(),
                    to_private(_GFN + 1),
                    PunchGuestMemfd("file0", 0, 2 * PAGE_SIZE_BYTES),
                    to_shared(_GFN + 1),
                    rounds=10,
                ),
                host(_NEXT.create(), _NEXT.delete(), rounds=10),
            ),
            _VCPUS,
            source="api.rst 4.141; kvm_vm_set_mem_attributes, kvm_gmem_unbind",
            needs=("sw_protected", "guest_memfd", "user_memory2"),
            survey="none",
        ),
        vm_type=1,
    ),
    race(
        "clocks-through-moves",
        "While slots move, KVM's writes of a clock are logged in the slot written to, and only "
        "there.",
        (_LOGGED.create(), *_CLOCKS),
        (
            host(
                *(_LOGGED.log(), _LOGGED.move(_GFN + 4), _LOGGED.log(), _LOGGED.create()),
                *(_LOGGED.log(), _PLAIN.create(), _LOGGED.create(), _LOGGED.log()),
                rounds=10,
            ),
            host(_NEXT.create(), _NEXT.delete(), rounds=10),
        ),
        (reader(0, _GFN + 8, _GFN + 9), reader(1, _GFN + 8)),
        *(_PLAIN.create(), *_LOOKS, _LOGGED.move(_GFN + 4), *_LOOKS, _LOGGED.delete(), *_LOOKS),
        source="7caf9571563e, 8332f0ed4f18; kvm_gpc_refresh, record_steal_time",
        needs=("kvmclock", "kvmclock_ctrl", "steal_time"),
        survey="none",
    ),
    race(
        "clocks-and-host-memory",
        "While a clock's memory is unmapped and mapped, KVM writes only to what is mapped there.",
        (_ONE.create(), *_CLOCKS),
        (
            host(
                *(change("drop", "a", 0, 2), change("unmap", "a", 1), change("map", "a", 1)),
                *(change("map_fresh", "a", 1), change("map", "a", 1)),
                *(change("write_protect", "a", 0, 2), change("allow", "a", 0, 2)),
                rounds=10,
            ),
            host(_ONE.move(_GFN + 1), _ONE.create(), rounds=10),
        ),
        (reader(0, _GFN, _GFN + 1), reader(1, _GFN + 8)),
        *(*_LOOKS, _ONE.delete(), *_LOOKS),
        source="a3ec2e2b4a2f; gfn_to_pfn_cache_invalidate_start, hva_to_pfn_retry",
        needs=("sync_mmu", "kvmclock", "kvmclock_ctrl", "steal_time"),
        survey="none",
    ),
    Scenario(
        name="racing-closed-guest-memfd",
        why="A guest_memfd is closed while a slot that is bound to it is deleted.",
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
        why="Holes are punched in guest_memfds while a slot on one of them is bound and deleted.",
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
"""All races with the host's memory, guest_memfds and migration."""
