"""Enabling the dirty ring: when, with which size, and what it replaces."""

from dataclasses import replace

from msgspec import structs

from vmm.catalogue._build import Slot, at
from vmm.catalogue._dirty import HARVEST, INITIALLY_SET, RESET, ring_scenario, writes
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    FIRST_RING_PAGE,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    ClearDirtyLog,
    EnableCap,
    GetDirtyLog,
    Mapping,
    MapVcpuPages,
    NewVm,
    Scenario,
)

_SLOT = Slot(1, 0x100, at("a"), 4, LOG_DIRTY_PAGES)

_LONG = Slot(1, 0x1000, at("memory"), 360, LOG_DIRTY_PAGES)
_PIECE = 180
"""Pages between two harvests: fewer than the smallest ring has entries beside its reserve."""

_SET_AND_RING = "kvm_mmu_slot_apply_flags; kvm_prepare_memory_region"


def _of_size(size_bytes: int) -> EnableCap:
    return EnableCap("DIRTY_LOG_RING", size_bytes)


def _mapped(ring_pages: int) -> tuple[MapVcpuPages, ...]:
    """Map pages before, in and after a ring, and over its ends."""
    end = FIRST_RING_PAGE + ring_pages
    places = (
        *((0, 1), (FIRST_RING_PAGE - 1, 1), (FIRST_RING_PAGE, ring_pages)),
        *((0, FIRST_RING_PAGE + 1), (FIRST_RING_PAGE - 1, 2), (end - 1, 1)),
        *((end - 1, 2), (end, 1), (FIRST_RING_PAGE, ring_pages + 1)),
    )
    shared = tuple(MapVcpuPages(first, pages) for first, pages in places)
    return (
        *shared,
        *(structs.replace(each, sharing="private") for each in shared),
        *(structs.replace(each, executable=True) for each in shared),
    )


def _mapped_otherwise(size: int) -> Scenario:
    return ring_scenario(
        "ring-mapped-otherwise",
        "A mapping of a vCPU's file that begins or ends in the ring is shared, and not "
        "executable: else EINVAL. Without a ring there, nothing is refused for that. What can be "
        "mapped shows the ring, whichever page it begins with.",
        _of_size(size),
        _SLOT.create(),
        *writes(_SLOT, 1),
        *_mapped(size // PAGE_SIZE_BYTES),
        HARVEST,
        RESET,
        *writes(_SLOT, 1, 2),
        HARVEST,
        NewVm(),
        *_mapped(size // PAGE_SIZE_BYTES),
        source="kvm_vcpu_mmap, kvm_vcpu_fault",
        tags=("errno",),
    )


def _sizes(least: int, most: int) -> tuple[Scenario, ...]:
    return (
        ring_scenario(
            "ring-sizes-refused",
            "A size is a power of two, at least a page, and not too large: EINVAL, then E2BIG.",
            *map(_of_size, (0, 1, 16, 1024, 2048, 4095, 4097, 3 * 4096, most + 4096)),
            *map(_of_size, (2 * most, 1 << 31, 1 << 32)),
            RESET,
            _SLOT.create(),
            *writes(_SLOT, 1),
            _SLOT.log(),
            source="kvm_vm_ioctl_enable_dirty_log_ring",
        ),
        *(
            ring_scenario(
                f"ring-of-{which}-size",
                f"The {which} ring that the kernel offers works like any other.",
                _of_size(size_bytes),
                _SLOT.create(),
                *writes(_SLOT, 1, 2),
                HARVEST,
                RESET,
                *writes(_SLOT, 2),
                HARVEST,
                RESET,
            )
            for which, size_bytes in (("smallest", least), ("largest", most))
        ),
        _mapped_otherwise(min(max(2 * PAGE_SIZE_BYTES, least), most)),
        ring_scenario(
            "ring-of-several-pages",
            "Each page of a ring has entries of its own: it goes over their ends, and around.",
            _of_size(min(max(4 * PAGE_SIZE_BYTES, least), most)),
            _LONG.create(),
            *(
                op
                for start in range(0, 3 * _LONG.pages, _PIECE)
                for op in (
                    *writes(_LONG, *(page % _LONG.pages for page in range(start, start + _PIECE))),
                    HARVEST,
                    RESET,
                )
            ),
            source="kvm_dirty_ring_get_page",
            mappings=(Mapping("memory", _LONG.pages),),
        ),
    )


def _when(enable: EnableCap, most: int) -> tuple[Scenario, ...]:
    acq_rel = EnableCap("DIRTY_LOG_RING_ACQ_REL", enable.argument)
    return (
        ring_scenario(
            "ring-enabled-once",
            "The ring is enabled once: the same size again, or another one, is EINVAL.",
            enable,
            enable,
            _of_size(2 * enable.argument),
            _of_size(2 * most),
            _SLOT.create(),
            *writes(_SLOT, 1),
            HARVEST,
            RESET,
            source="kvm_vm_ioctl_enable_dirty_log_ring",
        ),
        ring_scenario(
            "ring-after-a-vcpu",
            "Enabling a ring is EINVAL once a vCPU exists; a bad size is found first, and the "
            "dirty log continues.",
            _SLOT.create(),
            *writes(_SLOT, 1),
            enable,
            _of_size(2 * most),
            HARVEST,
            RESET,
            _SLOT.log(),
            source="kvm_vm_ioctl_enable_dirty_log_ring",
        ),
        ring_scenario(
            "ring-acquire-release",
            "The other capability enables the same ring, and only one of them can be enabled.",
            acq_rel,
            enable,
            _SLOT.create(),
            *writes(_SLOT, 1),
            HARVEST,
            RESET,
            needs=("dirty_ring_bytes", "dirty_ring_acq_rel"),
        ),
    )


def _replaced(enable: EnableCap) -> tuple[Scenario, ...]:
    """Return the scenarios about the dirty log, which a ring replaces."""
    return (
        ring_scenario(
            "ring-instead-of-the-log",
            "With a ring there is no dirty log: ENXIO for reading and clearing, before all else.",
            enable,
            _SLOT.create(),
            *writes(_SLOT, 1),
            _SLOT.log(),
            GetDirtyLog(2),
            GetDirtyLog(0xFFFF),
            GetDirtyLog(1, bitmap="unwritable"),
            HARVEST,
            RESET,
            source="kvm_use_dirty_bitmap",
        ),
        ring_scenario(
            "ring-instead-of-clearing",
            "With a ring there is nothing to clear: ENXIO before any other refusal.",
            enable,
            _SLOT.create(),
            *writes(_SLOT, 1),
            ClearDirtyLog(1, 0, 4),
            ClearDirtyLog(2, 1, 4),
            ClearDirtyLog(0xFFFF, 0, 4),
            HARVEST,
            RESET,
            source="kvm_use_dirty_bitmap",
            needs=("dirty_ring_bytes", "manual_dirty_log"),
        ),
        ring_scenario(
            "ring-enabled-over-logged-slots",
            "A slot that already has a dirty log is tracked by the ring from then on.",
            _SLOT.create(),
            enable,
            RESET,
            *writes(_SLOT, 0),
            HARVEST,
            RESET,
            _SLOT.log(),
        ),
    )


def _initially_set(enable: EnableCap) -> tuple[Scenario, ...]:
    return (
        ring_scenario(
            "ring-and-initially-set",
            "A ring cannot begin with all pages: it names only pages that are written.",
            enable,
            INITIALLY_SET,
            _SLOT.create(),
            HARVEST,
            *writes(_SLOT, 1, 2),
            HARVEST,
            RESET,
            *writes(_SLOT, 2),
            HARVEST,
            RESET,
            source=_SET_AND_RING,
            needs=("dirty_ring_bytes", "dirty_log_initially_set"),
        ),
        ring_scenario(
            "ring-and-initially-set-by-flags-only",
            "With a ring and INITIALLY_SET, pages mapped before need not be tracked until the "
            "slot moves; then all are.",
            enable,
            INITIALLY_SET,
            replace(_SLOT, flags=0).create(),
            *writes(_SLOT, 0, 1),
            _SLOT.create(),
            *writes(_SLOT, 1, 3),
            HARVEST,
            RESET,
            *writes(_SLOT, 1),
            HARVEST,
            RESET,
            _SLOT.move(0x108),
            *writes(replace(_SLOT, gfn=0x108), 1, 2),
            HARVEST,
            RESET,
            source=_SET_AND_RING,
            needs=("dirty_ring_bytes", "dirty_log_initially_set"),
        ),
    )


def _new_vms(enable: EnableCap) -> tuple[Scenario, ...]:
    return (
        ring_scenario(
            "ring-of-one-vm",
            "A new VM begins without a ring, and has a dirty log.",
            enable,
            _SLOT.create(),
            *writes(_SLOT, 1),
            NewVm(),
            _SLOT.create(),
            *writes(_SLOT, 2),
            _SLOT.log(),
            RESET,
            NewVm(),
            enable,
            _SLOT.create(),
            *writes(_SLOT, 3),
            HARVEST,
            RESET,
        ),
    )


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios about enabling a ring."""
    least, most = features.dirty_ring_bytes or PAGE_SIZE_BYTES, features.dirty_ring_max_bytes
    enable = _of_size(least)
    return (
        *_sizes(least, most),
        *_when(enable, most),
        *_replaced(enable),
        *_initially_set(enable),
        *_new_vms(enable),
    )
