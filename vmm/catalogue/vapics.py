"""What of a vCPU's interrupts is in guest memory, while slots are created, moved and deleted."""

from dataclasses import replace

from vmm.catalogue._area import Area
from vmm.catalogue._build import Slot, at, creates, read, write
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    SMM,
    AnyOperation,
    AsId,
    ChangeHostMemory,
    CreateIrqchip,
    EnableCap,
    GetDirtyLog,
    HarvestDirtyRing,
    HostWrite,
    Inspect,
    PageMsr,
    Place,
    ResetDirtyRings,
    Scenario,
    SetApic,
    SetPageMsr,
    SetVapicAddr,
)

_GFN, _AWAY, _LAST = 0x100, 0x120, 0x140
_SLOT = Slot(1, _GFN, at("a"), 4)
_OTHER = Slot(2, _GFN, at("b"), 4)
_REPORT = Slot(3, _LAST, at("a", 6))
_OFFSET = 0x400
_GPA = (_GFN + 1) * PAGE_SIZE_BYTES + _OFFSET
_REPORT_GPA = _LAST * PAGE_SIZE_BYTES + _OFFSET
_IDLE_GFN = 0x300
"""A gfn without a slot: a vCPU that reads it runs, and accesses nothing else."""

_VAPIC = Area(
    prefix="vapic-",
    tags=("vapic",),
    source="kvm_lapic_sync_to_vapic, kvm_lapic_sync_from_vapic; fda4e2e85589",
    needs=("irqchip",),
    survey="none",
    before=(CreateIrqchip(),),
)
_MSRS = Area(
    prefix="page-msr-",
    tags=("vapic",),
    source="x86/msr.rst MSR_KVM_PV_EOI_EN; kvm_lapic_set_pv_eoi, kvm_hv_set_msr",
    survey="none",
)


def _set(msr: PageMsr, gpa: int = 0, *, off: bool = False) -> SetPageMsr:
    where = _GPA - _OFFSET if msr == "assist_page" else _GPA
    return SetPageMsr(msr, gpa or where, not off)


def _word(mapping: str, page: int, value: int) -> HostWrite:
    """Write a priority, and three bytes beside it, where a gpa of these scenarios may be."""
    return HostWrite(Place(mapping, page * PAGE_SIZE_BYTES + _OFFSET), 0x0A0B0C00 | value)


def _run(as_id: AsId = 0) -> tuple[AnyOperation, ...]:
    return (read(_IDLE_GFN, as_id=as_id), Inspect())


def _written(priority: int, as_id: AsId = 0) -> tuple[AnyOperation, ...]:
    """Let a vCPU run with another priority, so that KVM writes it."""
    return (SetApic(priority=priority), *_run(as_id))


def _each_written(*calls: AnyOperation) -> tuple[AnyOperation, ...]:
    """Let KVM write another priority after each call, over what the host has written there."""
    return tuple(
        op
        for number, call in enumerate(calls, 1)
        for op in (call, _word("a", 1, 0), _word("b", 1, 0), *_written(number << 4))
    )


def _logged(*calls: AnyOperation) -> tuple[AnyOperation, ...]:
    """Let KVM write another priority after each call, and look at the log."""
    return tuple(
        op
        for number, call in enumerate(calls, 1)
        for op in (call, *_written(number << 4), GetDirtyLog(1), GetDirtyLog(1))
    )


def _harvested(*calls: AnyOperation) -> tuple[AnyOperation, ...]:
    """Do the same with a dirty ring."""
    return tuple(
        op
        for number, call in enumerate(calls, 1)
        for op in (call, *_written(number << 4), HarvestDirtyRing(), ResetDirtyRings())
    )


def _read_on() -> tuple[AnyOperation, ...]:
    """Let KVM read a priority where it has read before, and write elsewhere what it has read."""
    return (
        *(read(_IDLE_GFN), SetVapicAddr(_REPORT_GPA), SetApic(), *_run()),
        *(SetApic(enabled=False), SetVapicAddr(_GPA), read(_IDLE_GFN)),
    )


def _ends() -> tuple[AnyOperation, ...]:
    """Say that priorities are at the ends of pages and slots, and beyond."""
    start, end = _GFN * PAGE_SIZE_BYTES, (_GFN + 4) * PAGE_SIZE_BYTES
    gpas = (start, start + 0xFFC, end - 4, end - 3, end, start - 4, start - 1, start + 0xFFE)
    return tuple(
        op
        for number, gpa in enumerate(gpas, 1)
        for op in (SetVapicAddr(gpa), *_written(number << 4), SetVapicAddr(0))
    )


def _refused_in_no_slot(
    msr: PageMsr, *last: AnyOperation, first: tuple[AnyOperation, ...] = (), need: str = ""
) -> Scenario:
    """Set an MSR where there is no slot, and other slots than before, and do a last thing."""
    return _MSRS(
        f"{msr.replace('_', '-')}-in-no-slot-is-refused",
        "An MSR takes no gpa without a slot, nor one in a READONLY slot, nor one that is not "
        "aligned.",
        *first,
        *(
            op
            for call in (
                *(_set(msr, off=True), _SLOT.create(), _SLOT.move(_GFN - 1), _SLOT.move(_AWAY)),
                *(_SLOT.delete(), replace(_SLOT, flags=READONLY).create(), _SLOT.delete()),
                *(_OTHER.create(), _OTHER.delete(), _SLOT.create()),
            )
            for op in (call, _set(msr))
        ),
        *(*last, *_run()),
        needs=("readonly_mem", *filter(None, (need,))),
        tags=("errno",),
    )


_LOGGED = replace(_SLOT, flags=LOG_DIRTY_PAGES)

SCENARIOS = (
    _VAPIC(
        "written-where-the-slot-is-now",
        "KVM writes a priority to what is mapped at its gpa then, or nowhere.",
        *creates(_SLOT),
        SetVapicAddr(_GPA),
        *_each_written(
            *(read(_IDLE_GFN), _SLOT.move(_AWAY), _OTHER.create(), _OTHER.move(_GFN - 1)),
            *(_OTHER.delete(), _SLOT.move(_GFN), _SLOT.delete(), _SLOT.create()),
        ),
    ),
    _VAPIC(
        "read-where-the-slot-is-now",
        "KVM reads a priority from what is mapped at its gpa then.",
        *creates(_SLOT, _REPORT),
        *(_word("a", page, 0x10 * page) for page in range(1, 4)),
        *(_word("b", page, 0x80 + 0x10 * page) for page in range(1, 4)),
        *(SetVapicAddr(_GPA), read(_IDLE_GFN)),
        *(
            op
            for calls in (
                *((_SLOT.move(_GFN - 1),), (_SLOT.move(_AWAY), _OTHER.create())),
                *((_OTHER.move(_GFN - 1),), (_OTHER.delete(), _SLOT.move(_GFN))),
                (_SLOT.delete(), Slot(1, _GFN, at("b"), 4).create()),
            )
            for op in (*calls, *_read_on())
        ),
    ),
    _VAPIC(
        "at-the-ends-of-pages-and-slots",
        "KVM writes a priority to its own four bytes only, also over the end of a page.",
        *creates(_SLOT, Slot(2, _GFN + 8, at("b"), 2)),
        *_ends(),
    ),
    _VAPIC(
        "in-no-slot-is-refused",
        "KVM_SET_VAPIC_ADDR is EINVAL where no slot is, or a READONLY one, and so is a word of "
        "which a part is there; 0 always succeeds.",
        *(SetVapicAddr(_GPA), SetVapicAddr(0)),
        _SLOT.create(),
        *(
            SetVapicAddr((_GFN + page) * PAGE_SIZE_BYTES + offset)
            for page, offset in ((-1, 0xFFC), (-1, 0xFFE), (3, 0xFFC), (3, 0xFFD), (4, 0))
        ),
        *(SetVapicAddr(0), _SLOT.delete(), SetVapicAddr(_GPA)),
        *(replace(_SLOT, flags=READONLY).create(), SetVapicAddr(_GPA), SetVapicAddr(0)),
        *_written(0x30),
        needs=("readonly_mem",),
        tags=("errno",),
    ),
    _VAPIC(
        "is-logged",
        "A priority that KVM writes is in the dirty log of the slot that has the gpa then.",
        *(_LOGGED.create(), SetVapicAddr(_GPA)),
        *_logged(
            *(read(_IDLE_GFN), _LOGGED.move(_GFN - 1), _SLOT.create(), _LOGGED.create()),
            *(_LOGGED.delete(), replace(_LOGGED, hva=at("b")).create()),
        ),
        *(SetApic(enabled=False), *_run(), GetDirtyLog(1)),
    ),
    _VAPIC(
        "is-in-the-ring",
        "A priority that KVM writes for a vCPU is in its dirty ring.",
        EnableCap("DIRTY_LOG_RING", 4096),
        *(_LOGGED.create(), SetVapicAddr(_GPA)),
        *_harvested(read(_IDLE_GFN), _LOGGED.move(_GFN - 1)),
        needs=("dirty_ring_bytes",),
    ),
    _VAPIC(
        "follows-host-memory",
        "KVM writes a priority to what the host's mapping then shows: other pages, or none.",
        _OTHER.create(),
        SetVapicAddr(_GPA),
        *(
            op
            for number, how in enumerate(("drop", "unmap", "map", "forbid", "allow", "map_fresh"))
            for op in (
                ChangeHostMemory(at("b", 1), 1, how),  # type: ignore[arg-type]
                *_written(0x10 + (number << 4)),
            )
        ),
        needs=("sync_mmu",),
    ),
    _VAPIC(
        "in-smm",
        "A vCPU's priority is in as_id 0, whether the vCPU is in system management mode or not.",
        *creates(_SLOT, Slot(SMM << 16 | 1, _GFN, at("b"), 4)),
        SetVapicAddr(_GPA),
        *(*_written(0x10), *_written(0x20, SMM), _SLOT.move(_AWAY), *_written(0x30, SMM)),
        *_written(0x40),
        needs=("smm",),
    ),
    _refused_in_no_slot("pv_eoi", _set("pv_eoi", _GPA + 2), _set("pv_eoi", off=True)),
    _refused_in_no_slot("assist_page", _set("assist_page", off=True)),
    _refused_in_no_slot(
        "async_pf", _set("async_pf", off=True), first=(CreateIrqchip(),), need="irqchip"
    ),
    _MSRS(
        "clears-four-bytes",
        "KVM clears the first four bytes of an assist page where its gpa is mapped then, and logs "
        "that.",
        *creates(_LOGGED, replace(_OTHER, gfn=_AWAY, flags=LOG_DIRTY_PAGES)),
        *(
            op
            for call in (
                *(_set("assist_page"), _LOGGED.move(_GFN - 1), _LOGGED.move(_LAST)),
                *(replace(_OTHER, flags=LOG_DIRTY_PAGES).create(), _SLOT.move(_LAST)),
            )
            for op in (
                *(call, _set("assist_page"), Inspect(), GetDirtyLog(1), GetDirtyLog(2)),
                *(read(_GFN + 1), write(_GFN + 1, 0x5A), GetDirtyLog(1), GetDirtyLog(2)),
            )
        ),
        source="kvm_hv_set_msr: hv_vp_assist_page",
    ),
    _MSRS(
        "clears-four-bytes-in-the-ring",
        "What KVM clears of an assist page is in the dirty ring of the vCPU.",
        EnableCap("DIRTY_LOG_RING", 4096),
        _LOGGED.create(),
        *(
            op
            for call in (read(_IDLE_GFN), _LOGGED.move(_GFN - 1), _SLOT.create())
            for op in (call, _set("assist_page"), HarvestDirtyRing(), ResetDirtyRings())
        ),
        source="kvm_hv_set_msr: hv_vp_assist_page",
        needs=("dirty_ring_bytes",),
    ),
    _MSRS(
        "and-priority-of-no-apic",
        "Without a local APIC in the kernel a vCPU has no priority, in memory or not: EINVAL.",
        _SLOT.create(),
        *(SetVapicAddr(_GPA), SetApic(priority=0x10), SetVapicAddr(0), SetApic(enabled=False)),
        *(_set("async_pf"), _set("async_pf", off=True), *_run()),
        source="api.rst 4.57, 4.58; kvm_arch_vcpu_ioctl",
        tags=("errno",),
    ),
)
"""All scenarios of what of a vCPU's interrupts is in guest memory."""
