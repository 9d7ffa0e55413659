"""Slots on page frames as a driver maps those of a device, for which KVM takes no page structure.

KVM finds such memory (VM_PFNMAP) in the page table of the process, by a path of its own.
"""

from collections.abc import Iterator
from typing import Unpack

from vmm.catalogue._area import Area, Own
from vmm.catalogue._build import Slot, at, creates, read, write
from vmm.catalogue._starts import CODE, GFNS, TABLES, accesses, programs
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    ChangeHostMemory,
    EnableCap,
    GetDirtyLog,
    HarvestDirtyRing,
    HostChangeKind,
    HostWrite,
    Inspect,
    KvmclockCtrl,
    Mapping,
    Place,
    PreFaultMemory,
    ResetDirtyRings,
    Scenario,
    SetClockMsr,
)
from vmm.scenario.pagetables import Tables
from vmm.scenario.programs import ENTRY_BYTES

_FILE = Mapping("file", 6, "memfd")
_FRAMES = Mapping("frames", 6, "pfnmap", of="file")
_PAGES = range(6)
_GFN = 0x100
_SLOT = Slot(1, _GFN, at("frames"), 6)
_LOGGED = Slot(1, _GFN, at("frames"), 6, LOG_DIRTY_PAGES)
_TWIN = Slot(2, _GFN + 0x10, at("file"), 6)
"""The same pages, mapped as those of a file."""

_area = Area(
    prefix="pfnmap-",
    tags=("pfnmap", "follow"),
    source="KVM_CAP_SYNC_MMU; hva_to_pfn_remapped",
    needs=("sync_mmu", "pfnmap"),
    mappings=(_FILE, _FRAMES),
    survey="none",
)


def _change(how: HostChangeKind, page: int, pages: int) -> ChangeHostMemory:
    return ChangeHostMemory(at("frames", page), pages, how)


def _reads(slot: Slot = _SLOT, offset: int = 0x100) -> tuple[AnyOperation, ...]:
    return tuple(read(slot.gfn + page, offset) for page in _PAGES)


def _looks(turn: int, *slots: Slot) -> tuple[AnyOperation, ...]:
    """Read and write every page of slots; each sees what was written through the others."""
    slots = slots or (_SLOT,)
    writes = (
        write(slot.gfn + page, (turn << 24) + (slot.slot << 16) + page, _written(slot))
        for slot in slots
        for page in _PAGES
    )
    seen = (each for slot in slots for other in slots for each in _reads(other, _written(slot)))
    reads = (each for slot in slots for each in _reads(slot))
    return (*reads, *writes, *seen, Inspect())


def _written(slot: Slot) -> int:
    """Return the offset in each page at which the guest writes through a slot."""
    return 0x200 + 0x10 * slot.slot


def _changing(name: str, why: str, *changes: AnyOperation, **own: Unpack[Own]) -> Scenario:
    """Return a scenario that accesses a slot, and its twin, before, between and after changes."""
    return _area(
        name,
        why,
        *creates(_SLOT, _TWIN),
        *_looks(1, _SLOT, _TWIN),
        *(op for n, change in enumerate(changes, 2) for op in (change, *_looks(n, _SLOT, _TWIN))),
        **own,
    )


_TABLES = Tables("file", 0x100, GFNS)


def _lay(tables: Tables) -> Iterator[AnyOperation]:
    """Yield the operations that write tables to pages that are not, and cannot be, zeros."""
    for op in tables.lay():
        if isinstance(op, HostWrite):
            yield op
            yield HostWrite(Place(op.place.mapping, op.place.offset + ENTRY_BYTES // 2), 0)


SCENARIOS = (
    _area(
        "is-reached",
        "A slot on page frames is created, moved and deleted like any other.",
        _SLOT.create(),
        _SLOT.move(_GFN + 3),
        _SLOT.move(_GFN),
        _SLOT.delete(),
        _SLOT.create(),
        _SLOT.delete(),
        survey="write",
    ),
    _changing(
        "beside-the-file",
        "What the guest writes to page frames, it reads through the file, and the other way round.",
        HostWrite(at("frames", 1), 0x0DD_F00D),
        HostWrite(at("file", 2), 0x0DD_FACE),
    ),
    _changing(
        "unmapped",
        "Page frames that the host unmaps are gone for the guest until they are back.",
        _change("unmap", 1, 3),
        _change("map", 2, 2),
        _change("map", 1, 1),
    ),
    _changing(
        "forbidden",
        "Page frames that the host may not access are out of the guest's reach until it may again.",
        _change("forbid", 0, 2),
        _change("allow", 0, 2),
    ),
    _changing(
        "write-protected",
        "The guest reads page frames that the host may only read, and cannot write them until it "
        "may again.",
        _change("write_protect", 1, 3),
        _change("allow", 2, 1),
        _change("allow", 1, 3),
    ),
    _area(
        "write-protected-before-reads",
        "Page frames that the host may only read stay unwritable when the guest has read them.",
        _SLOT.create(),
        _change("write_protect", 1, 3),
        *_reads(),
        *_looks(1),
        _change("allow", 1, 3),
        *_reads(),
        *_looks(2),
    ),
    _changing(
        "other-memory-over-it",
        "Fresh memory, or a file, that is mapped over page frames is what the guest reaches there.",
        _change("map_fresh", 1, 2),
        ChangeHostMemory(at("frames", 3), 2, "map_file", at("file")),
        _change("map", 0, 6),
    ),
    _area(
        "under-readonly",
        "A READONLY slot on page frames is read; writes exit, whatever the host may do.",
        Slot(1, _GFN, at("frames"), 6, READONLY).create(),
        *_looks(1),
        _change("write_protect", 1, 3),
        *_looks(2),
        _change("allow", 1, 3),
        *_looks(3),
        needs=("readonly_mem",),
    ),
    _area(
        "in-a-logged-slot",
        "The dirty log names the page frames that the guest wrote, and no other.",
        _LOGGED.create(),
        *_reads(),
        GetDirtyLog(1),
        *(write(_GFN + page, 0x0D1E_0000 + page) for page in (0, 2, 5)),
        GetDirtyLog(1),
        write(_GFN + 2, 0x0D1E_1002),
        _change("write_protect", 1, 3),
        *(write(_GFN + page, 0x0D1E_2000 + page) for page in (0, 2, 4)),
        GetDirtyLog(1),
        _change("allow", 1, 3),
        write(_GFN + 2, 0x0D1E_3002),
        GetDirtyLog(1),
        *_reads(),
        tags=("dirty-log",),
    ),
    _area(
        "in-a-ring",
        "A dirty ring names the page frames that the guest wrote, again after each reset.",
        EnableCap("DIRTY_LOG_RING_ACQ_REL", 0x10000),
        _LOGGED.create(),
        *(write(_GFN + page, 0x0D1E_0000 + page) for page in (0, 2, 5)),
        HarvestDirtyRing(),
        ResetDirtyRings(),
        *(write(_GFN + page, 0x0D1E_1000 + page) for page in (2, 3)),
        HarvestDirtyRing(),
        ResetDirtyRings(),
        tags=("dirty-ring",),
        needs=("dirty_ring_acq_rel",),
    ),
    _area(
        "logged-later",
        "Page frames that the guest could write are logged once the slot is.",
        _SLOT.create(),
        *_looks(1),
        _LOGGED.create(),
        *(write(_GFN + page, 0x0D1E_0000 + page) for page in (1, 4)),
        GetDirtyLog(1),
        _SLOT.create(),
        *_looks(2),
        tags=("dirty-log",),
    ),
    _area(
        "mapped-ahead",
        "Page frames are mapped ahead of their use, but not where the host has unmapped them.",
        _SLOT.create(),
        PreFaultMemory(_GFN * PAGE_SIZE_BYTES, 6 * PAGE_SIZE_BYTES),
        *_looks(1),
        _change("unmap", 2, 2),
        PreFaultMemory(_GFN * PAGE_SIZE_BYTES, 2 * PAGE_SIZE_BYTES),
        *_looks(2),
        _change("map", 2, 2),
        PreFaultMemory((_GFN + 2) * PAGE_SIZE_BYTES, 2 * PAGE_SIZE_BYTES),
        *_looks(3),
        tags=("pre-fault",),
        needs=("pre_fault",),
    ),
    _area(
        "holds-a-system-time",
        "KVM writes a vCPU's system time to page frames, and nowhere while they are unmapped.",
        _SLOT.create(),
        SetClockMsr("system_time", _GFN * PAGE_SIZE_BYTES + 0x1400),
        KvmclockCtrl(),
        *_looks(1),
        _change("unmap", 1, 1),
        _change("map", 1, 1),
        KvmclockCtrl(),
        *_looks(2),
        _SLOT.move(_GFN + 0x20),
        *_reads(_SLOT),
        Inspect(),
        source="hva_to_pfn_retry, gpc_map",
        tags=("clocks",),
        needs=("kvmclock", "kvmclock_ctrl"),
    ),
    _area(
        "holds-page-tables",
        "Page tables in page frames are walked, and marked as used, where the frames are.",
        *_lay(_TABLES),
        *programs("code"),
        Slot(2, CODE.gfn, at("code", 4), 4).create(),
        Slot(1, TABLES.gfn, at("frames"), 4).create(),
        *accesses(_TABLES),
        Slot(1, TABLES.gfn, at("frames"), 4).delete(),
        Slot(1, TABLES.gfn, at("file"), 4).create(),
        *accesses(_TABLES),
        Inspect(),
        mappings=(_FILE, _FRAMES, Mapping("code", 8)),
        source="2a8859f373b0; walk_addr_generic, update_accessed_dirty_bits",
        tags=("start",),
    ),
)
