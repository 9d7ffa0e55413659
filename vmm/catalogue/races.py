"""Races: vCPUs read, write and execute while threads of the host change slots and memory."""

from dataclasses import replace

from vmm.catalogue._build import API_DIRTY, STALE_SLOT, WITHOUT_ZAP_ALL, A, Slot, at, creates, read
from vmm.catalogue._races import change, executor, host, race, reader, writer
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    GuestThread,
    HostWrite,
    Mapping,
    Scenario,
)

_FILE = Mapping("file", 8, "memfd")
_HUGE = Mapping("huge", 1024, "thp")

_GFN = 0x100
_ONE = Slot(1, _GFN, at("a"), pages=2)
_OTHER = Slot(1, _GFN, at("b"), pages=2)
_NEXT = Slot(2, _GFN + 8, at("b", 4), pages=2)


def _without_quirk(scenario: Scenario) -> Scenario:
    """Return the same race on a VM that zaps only the slot's own pages."""
    return Scenario(
        name=f"{scenario.name}-without-zap-all",
        why=f"{scenario.why[:-1]}, even if only the slot's own pages are zapped.",
        source="d012a06ab1d2, aa8d1f48d353; KVM_X86_QUIRK_SLOT_ZAP_ALL",
        tags=scenario.tags,
        needs=(*scenario.needs, "slot_zap_all_quirk"),
        mappings=scenario.mappings,
        survey=scenario.survey,
        vcpus=scenario.vcpus,
        operations=(WITHOUT_ZAP_ALL, *scenario.operations),
    )


_REPLACED = race(
    "delete-and-create",
    "While a slot is deleted and created with other memory, the guest sees one, none or the "
    "other, but nothing stale.",
    (_ONE.create(),),
    (host(_ONE.delete(), _OTHER.create(), _OTHER.delete(), _ONE.create(), rounds=15),),
    (reader(0, _GFN, _GFN + 1), writer(1, _GFN, _GFN + 1)),
    source="12d6e7538e2d; kvm_arch_flush_shadow_memslot",
)

_MOVED = race(
    "move",
    "While a slot moves, the guest sees its memory at one place or the other, and nothing stale.",
    (_ONE.create(),),
    (host(_ONE.move(_GFN + 4), _ONE.create(), rounds=30),),
    (reader(0, _GFN, _GFN + 4, _GFN + 5), writer(1, _GFN + 1, _GFN + 5)),
    source=STALE_SLOT,
)

_SLOTS = (
    _REPLACED,
    _without_quirk(_REPLACED),
    _MOVED,
    _without_quirk(_MOVED),
    race(
        "move-onto-itself",
        "While a slot moves by one page, the gfn in both places shows one page of it or the other.",
        (_ONE.create(),),
        (host(_ONE.move(_GFN + 1), _ONE.create(), rounds=30),),
        (reader(0, _GFN, _GFN + 1, _GFN + 2), writer(1, _GFN + 1)),
        source="e40f193f5bb0; kvm_invalidate_memslot",
    ),
    race(
        "execute",
        "Code is fetched from memory that a slot shows at that moment, or not at all.",
        (_ONE.create(),),
        (
            host(
                _ONE.move(_GFN + 1),
                _ONE.create(),
                _ONE.delete(),
                _OTHER.create(),
                _OTHER.delete(),
                _ONE.create(),
                rounds=15,
            ),
        ),
        (executor(0, _GFN), executor(1, _GFN + 1)),
        source="api.rst 4.35; kvm_arch_flush_shadow_memslot",
    ),
    race(
        "mmio-under-churn",
        "A vCPU that has a gpa cached as MMIO reaches a slot created there, while other slots "
        "change.",
        (),
        (
            host(_NEXT.create(), _ONE.create(), _NEXT.delete(), _ONE.delete(), rounds=15),
            host(
                Slot(7, 0x200, at("a", 4)).create(),
                Slot(7, 0x200, at("a", 4)).delete(),
                rounds=60,
                pause=0,
            ),
        ),
        (reader(0, _GFN, _GFN + 8), writer(1, _GFN, _GFN + 8)),
        source="152482580a1b, ddfd1730fd82; api.rst 5, KVM_EXIT_MMIO",
    ),
    race(
        "neighbours-stay",
        "While one slot is deleted and created, and another moves, the slot between never fails.",
        creates(_ONE, replace(_NEXT, gfn=_GFN + 2)),
        (
            host(_ONE.delete(), _ONE.create(), rounds=60, pause=0),
            host(
                Slot(3, _GFN + 4, at("a", 4)).create(),
                Slot(3, _GFN + 6, at("a", 4)).create(),
                rounds=60,
                pause=0,
            ),
        ),
        (reader(0, _GFN + 2, _GFN + 3, _GFN + 1), writer(1, _GFN + 2, _GFN + 4)),
        source="api.rst 4.35; kvm_swap_active_memslots",
    ),
    race(
        "two-slots-on-one-page",
        "A write through one of two slots on one page is seen through both, while they move.",
        creates(_ONE, Slot(2, _GFN + 8, at("a"), pages=2)),
        (
            host(_ONE.move(_GFN + 4), _ONE.create(), rounds=30),
            host(
                Slot(2, _GFN + 12, at("a"), pages=2).create(),
                Slot(2, _GFN + 8, at("a"), pages=2).create(),
                rounds=20,
                pause=0,
            ),
        ),
        (
            writer(0, _GFN, _GFN + 8),
            GuestThread(tuple(read(gfn, 0x200, 1) for gfn in (_GFN, _GFN + 8, _GFN + 4))),
        ),
        source="api.rst 4.35 KVM_SET_USER_MEMORY_REGION",
    ),
)

_LOGGED = replace(_ONE, pages=4, flags=LOG_DIRTY_PAGES)
_PLAIN = replace(_LOGGED, flags=0)

_DIRTY = (
    race(
        "dirty-log",
        "A log that is read while two vCPUs write misses no write, and invents none.",
        (_LOGGED.create(),),
        (host(_LOGGED.log(), rounds=40), host(HostWrite(at("a", 3), 1), rounds=30)),
        (writer(0, _GFN, _GFN + 1), writer(1, _GFN + 1, _GFN + 2)),
        _LOGGED.log(),
        _LOGGED.log(),
        source=API_DIRTY,
    ),
    race(
        "flags",
        "Logging that is switched on and off is complete while it is on, and no access fails.",
        (_PLAIN.create(),),
        (
            host(
                _LOGGED.create(),
                _LOGGED.log(),
                _LOGGED.log(),
                _PLAIN.create(),
                _PLAIN.log(),
                rounds=16,
            ),
        ),
        (writer(0, _GFN, _GFN + 3), writer(1, _GFN, _GFN + 1)),
        source="api.rst 4.35, 4.8; kvm_mmu_slot_apply_flags",
    ),
    race(
        "dirty-log-through-moves",
        "A log that moves with its slot names the pages written at either place.",
        (_LOGGED.create(),),
        (host(_LOGGED.move(_GFN + 8), _LOGGED.log(), _LOGGED.create(), _LOGGED.log(), rounds=20),),
        (writer(0, _GFN, _GFN + 8), writer(1, _GFN + 1, _GFN + 9)),
        _LOGGED.log(),
        source="api.rst 4.8; kvm_prepare_memory_region",
    ),
    race(
        "dirty-log-of-huge-pages",
        "A huge page that is split for logging, and joined again, loses no write.",
        (Slot(1, 0x200, at("huge"), 1024).create(),),
        (
            host(
                Slot(1, 0x200, at("huge"), 1024, LOG_DIRTY_PAGES).create(),
                Slot(1, 0x200, at("huge")).log(),
                Slot(1, 0x200, at("huge"), 1024).create(),
                rounds=16,
            ),
        ),
        (writer(0, 0x200, 0x3FF), writer(1, 0x400, 0x5FF)),
        source="7cd1bf039eeb; api.rst 4.8",
        mappings=(_HUGE,),
    ),
)

_MEMORY = (
    race(
        "drop",
        "Pages that the host drops read as zeros, and then as what is written to them.",
        (_ONE.create(),),
        (
            host(
                change("drop", "a", 0, 2),
                HostWrite(at("a"), 0x1234_0001),
                change("drop", "a", 1),
                HostWrite(at("a"), 0x1234_0002),
                rounds=20,
            ),
        ),
        (
            GuestThread((read(_GFN, 0), read(_GFN), read(_GFN + 1))),
            writer(1, _GFN, _GFN + 1),
        ),
        source="KVM_CAP_SYNC_MMU; kvm_mmu_notifier_invalidate_range_start",
        needs=("sync_mmu",),
    ),
    race(
        "punch",
        "Pages that are punched out of a file read as zeros, the first and the last included.",
        (Slot(1, _GFN, at("file"), 8).create(),),
        (
            host(change("punch", "file", 0), change("punch", "file", 6, 2), rounds=25),
            host(change("drop", "file", 1, 4), rounds=25),
        ),
        (writer(0, _GFN, _GFN + 2, _GFN + 7), writer(1, _GFN + 1, _GFN + 4, _GFN + 6)),
        source="KVM_CAP_SYNC_MMU; shmem_punch_hole",
        mappings=(_FILE,),
        needs=("sync_mmu",),
    ),
    race(
        "unmap",
        "The guest cannot reach pages that the host unmaps, and sees those that it maps again.",
        (_ONE.create(), Slot(2, _GFN + 8, at("file"), 8).create()),
        (
            host(
                change("unmap", "a", 0),
                change("unmap", "file", 0, 8),
                change("map", "a", 0),
                change("map", "file", 0, 8),
                rounds=20,
            ),
        ),
        (writer(0, _GFN, _GFN + 8), writer(1, _GFN, _GFN + 1, _GFN + 15)),
        source="KVM_CAP_SYNC_MMU; kvm_mmu_notifier_invalidate_range_start",
        mappings=(A, _FILE),
        needs=("sync_mmu",),
    ),
    race(
        "protect",
        "While the host protects and allows pages, the guest reaches them only while allowed, and "
        "no write is lost.",
        (_ONE.create(), Slot(2, _GFN + 8, at("file"), 8).create()),
        (
            host(change("forbid", "a", 1), change("allow", "a", 1), rounds=30),
            host(change("forbid", "file", 0, 8), change("allow", "file", 0, 8), rounds=30),
        ),
        (writer(0, _GFN, _GFN + 1), writer(1, _GFN + 1, _GFN + 8, _GFN + 15)),
        source="KVM_CAP_SYNC_MMU; change_protection",
        mappings=(A, _FILE),
        needs=("sync_mmu",),
    ),
    race(
        "slots-and-unmap",
        "Slots change while another thread unmaps their memory: no hang, and nothing stale.",
        (_ONE.create(),),
        (
            host(_ONE.delete(), _ONE.create(), _ONE.move(_GFN + 4), _ONE.create(), rounds=15),
            host(change("unmap", "a", 0, 2), change("map", "a", 0, 2), rounds=40),
        ),
        (writer(0, _GFN, _GFN + 4), writer(1, _GFN + 1, _GFN + 5)),
        source="52ac8b358b0c",
        needs=("sync_mmu",),
    ),
    race(
        "slots-logs-and-drop",
        "Slots are created and deleted, logs read, and pages dropped, all at the same time.",
        creates(_LOGGED, _NEXT),
        (
            host(_NEXT.delete(), _NEXT.create(), rounds=20),
            host(_LOGGED.log(), _PLAIN.create(), _LOGGED.create(), rounds=20),
            host(change("drop", "a", 0, 2), change("drop", "b", 4, 2), rounds=30),
        ),
        (writer(0, _GFN, _GFN + 2, _GFN + 8), writer(1, _GFN, _GFN + 9), reader(2, _GFN + 1)),
        _LOGGED.log(),
        source="api.rst 4.35, 4.8; KVM_CAP_SYNC_MMU",
        needs=("sync_mmu",),
    ),
)

SCENARIOS = (*_SLOTS, *_DIRTY, *_MEMORY)
"""All races of slots, dirty logs and host memory."""
