"""Clocks that KVM itself writes to guest memory, while slots are created, moved and deleted."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Unpack

from vmm.catalogue._area import Area, Own
from vmm.catalogue._build import HUGE, A, B, Slot, at, creates, read
from vmm.scenario.clocks import LAYOUTS
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    SMM,
    AnyOperation,
    AsId,
    ChangeHostMemory,
    Clock,
    CloseVm,
    EnableCap,
    GetDirtyLog,
    HarvestDirtyRing,
    HostWrite,
    Inspect,
    KvmclockCtrl,
    Mapping,
    NewVm,
    Place,
    ResetDirtyRings,
    Scenario,
    SetClockMsr,
    SwitchVm,
)

_GFN = 0x100
_SLOT = Slot(1, _GFN, at("a"), 4)
_OTHER = Slot(2, _GFN, at("b"), 4)
_AWAY = _GFN + 0x20
_PAGE = 1
_OFFSET = 0x400
_GPA = (_GFN + _PAGE) * PAGE_SIZE_BYTES + _OFFSET
_SOURCE = "x86/msr.rst; kvm_setup_guest_pvclock, record_steal_time"
_STALE = "7caf9571563e, 8332f0ed4f18, 52491a38b2c2: gfn-to-pfn caches of clocks that were stale"
_IDLE_GFN = 0x300
"""A gfn without a slot: a vCPU that reads it runs, and accesses nothing else."""

_BOTH: tuple[Clock, Clock] = ("system_time", "steal_time")
_NEEDS = {
    "wall_clock": ("kvmclock",),
    "system_time": ("kvmclock", "kvmclock_ctrl"),
    "steal_time": ("steal_time",),
}


def _set(clock: Clock, gpa: int = _GPA, *, on: bool = True, vcpu: int = 0) -> SetClockMsr:
    return SetClockMsr(clock, gpa, on, vcpu)


def _run(clock: Clock, vcpu: int = 0, as_id: AsId = 0) -> tuple[AnyOperation, ...]:
    """Let a vCPU run, so that KVM writes its clock; the system time must be requested first."""
    asks = (KvmclockCtrl(vcpu),) if clock == "system_time" else ()
    return (*asks, read(_IDLE_GFN, vcpu=vcpu, as_id=as_id), Inspect())


_AREAS = {
    clock: Area(
        prefix=f"clocks-{clock.replace('_', '-')}-",
        tags=("clocks",),
        source=_SOURCE,
        needs=needs,
        survey="none",
    )
    for clock, needs in _NEEDS.items()
}


def _scenario(
    name: str, clock: Clock, why: str, *operations: AnyOperation, **own: Unpack[Own]
) -> Scenario:
    return _AREAS[clock](name, why, *operations, **own)


def _after_each(clock: Clock, *calls: AnyOperation) -> tuple[AnyOperation, ...]:
    """Let the vCPU run after each call."""
    return tuple(op for call in calls for op in (call, *_run(clock)))


def _end_of_page(clock: Clock) -> int:
    return (_GFN + _PAGE + 1) * PAGE_SIZE_BYTES - LAYOUTS[clock].size


def _moved(clock: Clock) -> Scenario:
    return _scenario(
        "where-the-slot-is-now",
        clock,
        "After a move KVM writes its clock to what is then mapped at the gpa, or nowhere.",
        *creates(_SLOT),
        _set(clock),
        *_run(clock),
        *_after_each(
            clock,
            _SLOT.move(_AWAY),
            _OTHER.create(),
            _OTHER.move(_GFN - 1),
            _OTHER.delete(),
            _SLOT.move(_GFN - 1),
            _SLOT.move(_GFN),
        ),
        source=_STALE,
    )


def _deleted(clock: Clock) -> Scenario:
    return _scenario(
        "never-into-what-is-gone",
        clock,
        "After a deletion KVM writes its clock nowhere, then to a new slot at that gpa.",
        *creates(_SLOT),
        _set(clock),
        *_run(clock),
        *_after_each(
            clock,
            _SLOT.delete(),
            Slot(1, _GFN, at("b"), 4).create(),
            _SLOT.delete(),
            Slot(1, _GFN - 2, at("a"), 6).create(),
            _SLOT.delete(),
            _OTHER.create(),
            _OTHER.delete(),
            _SLOT.create(),
        ),
        source=_STALE,
    )


def _hole_first(clock: Clock) -> Scenario:
    return _scenario(
        "in-a-hole-at-first",
        clock,
        "A clock that was set in a hole is written nowhere; set again, it is written to the slot "
        "that is there now.",
        *_after_each(clock, read(_IDLE_GFN), _set(clock), _SLOT.create(), _set(clock)),
        _set(clock, on=False),
        read(_IDLE_GFN),
        read(_IDLE_GFN),
        Inspect(),
    )


def _places(clock: Clock) -> Scenario:
    size = LAYOUTS[clock].size
    gpas = [
        *(_GFN * PAGE_SIZE_BYTES, _GFN * PAGE_SIZE_BYTES + 0x80),
        *(_end_of_page(clock), (_GFN + 4) * PAGE_SIZE_BYTES - size),
        *((_GFN - 1) * PAGE_SIZE_BYTES + 0x40, (_GFN + 4) * PAGE_SIZE_BYTES),
    ]
    return _scenario(
        "at-the-ends-of-pages-and-slots",
        clock,
        "KVM writes its clock to the clock's own bytes only, also at the ends of a page or a slot, "
        "and where they are now on a page that they stay on.",
        *creates(_SLOT, Slot(2, _GFN + 8, at("b", 2), 2)),
        *_after_each(clock, *(_set(clock, gpa) for gpa in gpas)),
        *_after_each(clock, _set(clock, (_GFN + 9) * PAGE_SIZE_BYTES + _OFFSET), _set(clock)),
    )


def _shared(clock: Clock) -> Scenario:
    return _scenario(
        "in-memory-of-two-slots",
        clock,
        "A clock's page is seen through each slot on it, even if the clock's own slot is deleted.",
        *creates(_SLOT, Slot(2, _AWAY, at("a"), 4)),
        _set(clock),
        *_run(clock),
        *_after_each(
            clock,
            _SLOT.delete(),
            Slot(2, _AWAY, at("a"), 4).move(_GFN),
            Slot(1, _AWAY, at("a"), 4).create(),
        ),
    )


def _logged(clock: Clock) -> Scenario:
    log = replace(_SLOT, flags=LOG_DIRTY_PAGES)
    steps = (
        log.move(_GFN - 1),
        log.move(_GFN),
        _SLOT.create(),
        log.create(),
        log.delete(),
        Slot(1, _GFN, at("b"), 3, LOG_DIRTY_PAGES).create(),
    )
    return _scenario(
        "is-logged",
        clock,
        "KVM's own write is in the dirty log of the slot that has the gpa at that moment.",
        log.create(),
        _set(clock),
        *_run(clock),
        GetDirtyLog(1),
        *(op for step in steps for op in (step, *_run(clock), GetDirtyLog(1), GetDirtyLog(1))),
        _set(clock, _end_of_page(clock)),
        *_run(clock),
        GetDirtyLog(1),
        _set(clock, on=False),
        read(_IDLE_GFN),
        *(GetDirtyLog(1), GetDirtyLog(1), GetDirtyLog(1)),
        source="mark_page_dirty_in_slot; 7caf9571563e",
    )


def _in_ring(clock: Clock) -> Scenario:
    log = replace(_SLOT, flags=LOG_DIRTY_PAGES)
    calls = (log.move(_GFN - 1), _SLOT.create(), log.create(), log.delete(), log.create())
    return _scenario(
        "is-in-the-ring",
        clock,
        "KVM's own write for a vCPU is in its dirty ring, with the slot that has the gpa.",
        EnableCap("DIRTY_LOG_RING", 4096),
        log.create(),
        _set(clock),
        *(
            op
            for call in (read(_IDLE_GFN), *calls)
            for op in (call, *_run(clock), HarvestDirtyRing(), ResetDirtyRings())
        ),
        source="mark_page_dirty_in_slot; kvm_dirty_ring_push",
        needs=("dirty_ring_bytes",),
    )


def _readonly(clock: Clock) -> Scenario:
    slot = replace(_SLOT, flags=READONLY)
    return _scenario(
        "never-into-a-readonly-slot",
        clock,
        "KVM does not write its clock into a READONLY slot.",
        slot.create(),
        _set(clock),
        *_run(clock),
        *_after_each(clock, slot.delete(), _SLOT.create(), _set(clock), _SLOT.delete()),
        *_after_each(clock, slot.create(), slot.move(_GFN - 1)),
        needs=("readonly_mem",),
    )


def _host(clock: Clock) -> Scenario:
    def change(how: str, pages: int = 1) -> ChangeHostMemory:
        return ChangeHostMemory(at("b", _PAGE), pages, how)  # type: ignore[arg-type]

    return _scenario(
        "follows-host-memory",
        clock,
        "KVM writes its clock to what the host's mapping then shows: other pages, or none.",
        _OTHER.create(),
        _set(clock),
        *_run(clock),
        *_after_each(
            clock,
            *(change(how) for how in ("drop", "unmap", "map", "write_protect", "allow")),
            *(change(how) for how in ("forbid", "allow", "map_fresh", "page_out", "map")),
        ),
        source="gfn_to_pfn_cache_invalidate_start; a3ec2e2b4a2f",
        needs=("sync_mmu",),
    )


def _host_beside(clock: Clock) -> Scenario:
    def over(page: int, pages: int, source: int) -> ChangeHostMemory:
        return ChangeHostMemory(at("b", page), pages, "map_file", at("file", source))

    first = (_GFN + _PAGE) * PAGE_SIZE_BYTES
    ranges = ((_PAGE, 1, 3), (_PAGE - 1, 2, 4), (_PAGE, 2, 6))
    return _scenario(
        "follows-host-memory-at-the-ends-of-a-page",
        clock,
        "A clock at either end of a page follows the page, wherever the changed range begins.",
        over(0, 3, 0),
        _OTHER.create(),
        *(
            op
            for gpa in (first, _end_of_page(clock))
            for op in (
                *(_set(clock, gpa), *_run(clock)),
                # The pages mapped before stay in the file, where a late write would be seen.
                *_after_each(clock, *(over(*each) for each in ranges)),
            )
        ),
        source="gfn_to_pfn_cache_invalidate_start",
        needs=("sync_mmu",),
        mappings=(A, B, Mapping("file", 8, "memfd")),
        tags=("slow",),
    )


def _copied(clock: Clock) -> Scenario:
    return _scenario(
        "copies-what-is-shared-with-a-child",
        clock,
        "KVM's own write to memory shared with a forked child, or to a copy of a file, is private.",
        *creates(_SLOT, Slot(2, _GFN + 8, at("copy"), 4)),
        _set(clock),
        *_run(clock),
        ChangeHostMemory(Place("a"), 1, "fork"),
        *_run(clock),
        ChangeHostMemory(Place("a"), 1, "reap"),
        *_after_each(
            clock,
            _set(clock, (_GFN + 9) * PAGE_SIZE_BYTES + _OFFSET),
            ChangeHostMemory(at("copy", 1), 1, "drop"),
        ),
        mappings=(A, Mapping("file", 4, "memfd"), Mapping("copy", 4, "private_file", of="file")),
        needs=("sync_mmu",),
    )


def _vcpus(clock: Clock) -> Scenario:
    other = _GPA + PAGE_SIZE_BYTES
    return _scenario(
        "of-each-vcpu",
        clock,
        "Each vCPU has its own clock, which KVM writes when that vCPU runs.",
        _SLOT.create(),
        _set(clock),
        _set(clock, other, vcpu=1),
        *_run(clock),
        *_run(clock, 1),
        _SLOT.move(_GFN + 1),
        *_run(clock, 1),
        *_run(clock),
        _set(clock, on=False),
        *_run(clock, 1),
        read(_IDLE_GFN),
        read(_IDLE_GFN),
        Inspect(),
        vcpus=2,
    )


def _vms(clock: Clock) -> Scenario:
    return _scenario(
        "of-each-vm",
        clock,
        "A clock belongs to one VM, and ends with it.",
        _SLOT.create(),
        _set(clock),
        *_run(clock),
        SwitchVm(1),
        _OTHER.create(),
        read(_IDLE_GFN),
        Inspect(),
        _set(clock),
        *_run(clock),
        SwitchVm(0),
        *_run(clock),
        NewVm(),
        _SLOT.create(),
        read(_IDLE_GFN),
        Inspect(),
        SwitchVm(1),
        *_run(clock),
        CloseVm(),
        Inspect(),
    )


def _in_smm(clock: Clock) -> Scenario:
    inside = Slot(SMM << 16 | 1, _GFN, at("b"), 4)
    return _scenario(
        "in-smm",
        clock,
        "A vCPU's clock is in as_id 0, whether the vCPU is in system management mode or not.",
        *creates(_SLOT, inside),
        _set(clock),
        *_run(clock),
        *_run(clock, as_id=SMM),
        inside.move(_AWAY),
        *_run(clock, as_id=SMM),
        _SLOT.delete(),
        *_run(clock, as_id=SMM),
        needs=("smm",),
    )


def _huge(clock: Clock) -> Scenario:
    gfn = 0x800
    slot = Slot(1, gfn, at("huge"), 1024)
    gpas = [(gfn + page) * PAGE_SIZE_BYTES + _OFFSET for page in (0, 511, 512, 1023)]
    return _scenario(
        "in-huge-pages",
        clock,
        "KVM writes its clock at its gpa also in a huge page.",
        slot.create(),
        *_after_each(clock, *(_set(clock, gpa) for gpa in gpas)),
        *_after_each(clock, slot.move(gfn + 512), slot.delete()),
        mappings=(HUGE,),
    )


def _each(clock: Clock) -> Iterator[Scenario]:
    makers = (_moved, _deleted, _hole_first, _places, _shared, _logged, _in_ring, _readonly)
    others = (_host, _host_beside, _copied, _vcpus, _vms, _in_smm, _huge)
    return (make(clock) for make in (*makers, *others))


_WALLS = tuple(
    op
    for call in (
        *(_set("wall_clock"), _set("wall_clock"), _SLOT.move(_AWAY), _set("wall_clock")),
        *(_OTHER.create(), _set("wall_clock"), _OTHER.change(LOG_DIRTY_PAGES)),
        _set("wall_clock", _end_of_page("wall_clock")),
    )
    for op in (call, Inspect())
)

_HALVES = (
    Slot(1, _GFN, at("a"), 2, LOG_DIRTY_PAGES),
    Slot(2, _GFN + 2, at("a", 2), 2, LOG_DIRTY_PAGES),
)

_BEYOND = (_GFN + _SLOT.pages) * PAGE_SIZE_BYTES - 0x10
"""Where a system time begins in the last page of a slot, and ends after it."""

SCENARIOS = (
    _scenario(
        "reaches-beyond-its-slot",
        "system_time",
        "A system time that reaches from a slot into a hole is written nowhere.",
        *creates(_SLOT),
        *_after_each(
            "system_time",
            *(_set("system_time", _BEYOND), _set("system_time"), _set("system_time", on=False)),
            *(_set("system_time", _BEYOND), _SLOT.move(_GFN - 1), _set("system_time")),
        ),
        source="kvm_gpc_is_valid_len, __kvm_gfn_to_hva_cache_init",
    ),
    *(scenario for clock in _BOTH for scenario in _each(clock)),
    _scenario(
        "is-written-at-once",
        "wall_clock",
        "KVM writes the wall clock once, when its MSR is set, to what is then mapped at the gpa.",
        _SLOT.create(),
        *_WALLS,
        GetDirtyLog(2),
        read(_IDLE_GFN),
        Inspect(),
        _OTHER.delete(),
        replace(_OTHER, flags=READONLY).create(),
        _set("wall_clock"),
        Inspect(),
        _set("wall_clock", on=False),
        Inspect(),
        source="x86/msr.rst; kvm_write_wall_clock",
        needs=("readonly_mem",),
    ),
    _scenario(
        "goes-on-in-the-next-page",
        "wall_clock",
        "A wall clock across two pages, or two slots, is written and logged on both sides.",
        replace(_SLOT, flags=LOG_DIRTY_PAGES).create(),
        *(
            op
            for before in (8, 4)
            for op in (_set("wall_clock", _GPA - _OFFSET - before), Inspect(), GetDirtyLog(1))
        ),
        _SLOT.delete(),
        *creates(*_HALVES),
        _set("wall_clock", _HALVES[1].gfn * PAGE_SIZE_BYTES - 8),
        *(Inspect(), GetDirtyLog(1), GetDirtyLog(2)),
        source="kvm_write_wall_clock, kvm_write_guest",
    ),
    _scenario(
        "between-pages-that-are-written",
        "steal_time",
        "What the guest and the host write beside a clock stays as it is.",
        _SLOT.create(),
        _set("steal_time"),
        *(HostWrite(at("a", _PAGE), value) for value in (1, 2)),
        HostWrite(Place("a", _PAGE * PAGE_SIZE_BYTES + _OFFSET - 4), 3),
        HostWrite(Place("a", _PAGE * PAGE_SIZE_BYTES + _OFFSET + LAYOUTS["steal_time"].size), 4),
        *_run("steal_time"),
        HostWrite(Place("a", _PAGE * PAGE_SIZE_BYTES + _OFFSET + 12), 5),
        *_run("steal_time"),
    ),
    _scenario(
        "unaligned-is-refused",
        "steal_time",
        "A steal time that is not at a multiple of 64 bytes is not set, and the old one stays.",
        _SLOT.create(),
        _set("steal_time"),
        *(_set("steal_time", _GPA + PAGE_SIZE_BYTES + wrong) for wrong in (4, 32, 60)),
        *_run("steal_time"),
        source="x86/msr.rst MSR_KVM_STEAL_TIME; kvm_set_msr_common",
    ),
    _scenario(
        "paused-without-one",
        "system_time",
        "KVM_KVMCLOCK_CTRL is EINVAL if the vCPU has no system time, or no longer has one.",
        _SLOT.create(),
        KvmclockCtrl(),
        _set("system_time"),
        KvmclockCtrl(),
        KvmclockCtrl(),
        *_run("system_time"),
        _set("system_time", on=False),
        KvmclockCtrl(),
        read(_IDLE_GFN),
        Inspect(),
        source="api.rst 4.69; kvm_set_guest_paused",
    ),
)
"""All scenarios of clocks that KVM writes to guest memory."""
