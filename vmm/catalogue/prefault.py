"""KVM_PRE_FAULT_MEMORY maps memory ahead of its use: how far, and that it ends with its slot."""

from dataclasses import replace

from vmm.catalogue._area import Area
from vmm.catalogue._build import HUGE, A, B, Slot, at, creates, read, write
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    ChangeHostMemory,
    GuestThread,
    HostThread,
    Inspect,
    NewVm,
    PreFaultMemory,
    Race,
    Scenario,
)

_API = "api.rst 4.143 KVM_PRE_FAULT_MEMORY"
_PAGE = PAGE_SIZE_BYTES

_SLOT = Slot(1, 0x100, at("a"), pages=4)
_NEXT = Slot(2, 0x104, at("b"), pages=2)
_LARGE = Slot(3, 0x200, at("huge"), pages=1024)


def _ahead(gfn: int, pages: int = 1, vcpu: int = 0) -> PreFaultMemory:
    return PreFaultMemory(gfn * _PAGE, pages * _PAGE, vcpu=vcpu)


_anywhere = Area(tags=("pre-fault",), source=_API, survey="none")
_ahead_in = replace(_anywhere, needs=("pre_fault",))


_ANYWHERE = (
    _anywhere(
        "pre-fault-refuse-flags-and-ranges",
        "KVM_PRE_FAULT_MEMORY accepts no flags; its range is whole pages, not empty, and ends "
        "before 2^64.",
        _SLOT.create(),
        PreFaultMemory(0x100 * _PAGE, _PAGE, flags=1),
        PreFaultMemory(0x100 * _PAGE, _PAGE, flags=1 << 63),
        PreFaultMemory(0x100 * _PAGE + 1, _PAGE),
        PreFaultMemory(0x100 * _PAGE, _PAGE - 1),
        PreFaultMemory(0x100 * _PAGE, 0),
        PreFaultMemory((1 << 64) - _PAGE, _PAGE),
        PreFaultMemory(0x100 * _PAGE, (1 << 64) - 0x100 * _PAGE),
        PreFaultMemory((1 << 64) - _PAGE, 2 * _PAGE),
        read(0x100),
        tags=("errno",),
    ),
    _anywhere(
        "pre-fault-or-not",
        "A slot is mapped ahead, or the kernel cannot do that; the guest sees no difference.",
        _SLOT.create(),
        _ahead(0x100, 4),
        read(0x100),
        write(0x103, 0x0A4EAD01),
        Inspect(),
        _SLOT.delete(),
        _ahead(0x100),
        read(0x100),
    ),
)

_PROGRESS = (
    _ahead_in(
        "pre-fault-a-slot-and-its-parts",
        "The whole slot, any part of it, and pages mapped before are mapped ahead to the end.",
        _SLOT.create(),
        _ahead(0x100),
        _ahead(0x102, 2),
        _ahead(0x100, 4),
        _ahead(0x100, 4),
        *(read(gfn) for gfn in range(0x0FF, 0x105)),
        write(0x101, 0x0A4EAD02),
        _ahead(0x101),
        read(0x101),
    ),
    _ahead_in(
        "pre-fault-before-the-vcpu-has-run",
        "A vCPU that has never run maps memory ahead, in each of two VMs.",
        *creates(_SLOT),
        _ahead(0x101, 3),
        NewVm(),
        _ahead(0x100),
        *creates(_SLOT),
        _ahead(0x100, 4),
        read(0x103),
    ),
    _ahead_in(
        "pre-fault-up-to-a-hole",
        "Mapping ahead stops at the end of the slot, and is ENOENT if the range begins in a hole.",
        _SLOT.create(),
        _ahead(0x0FF, 2),
        _ahead(0x100, 5),
        _ahead(0x103, 0x1000),
        _ahead(0x104, 4),
        read(0x104),
        _NEXT.create(),
        _ahead(0x102, 4),
        _ahead(0x100, 8),
        read(0x104),
        tags=("errno",),
    ),
    _ahead_in(
        "pre-fault-up-to-the-end-of-all-addresses",
        "The longest range that does not wrap ends where the slot does.",
        _SLOT.create(),
        PreFaultMemory(0x100 * _PAGE, (1 << 64) - 0x101 * _PAGE),
        read(0x103),
    ),
    _ahead_in(
        "pre-fault-huge-pages",
        "Mapping ahead stops at the end of the range, even if it maps a huge page across it.",
        _LARGE.create(),
        _ahead(0x3FF),
        _ahead(0x3FE, 4),
        _ahead(0x200, 1024),
        _ahead(0x5FF, 2),
        *(read(gfn) for gfn in (0x1FF, 0x200, 0x3FF, 0x400, 0x5FF, 0x600)),
        _LARGE.move(0x201),
        *(read(gfn) for gfn in (0x200, 0x201, 0x400, 0x600, 0x601)),
        _ahead(0x201, 1025),
        *(read(gfn) for gfn in (0x200, 0x201, 0x400, 0x600, 0x601)),
        mappings=(HUGE,),
        tags=("huge",),
    ),
    _ahead_in(
        "pre-fault-above-4-gib",
        "Memory that the vCPU cannot address in its mode is mapped ahead like any other.",
        replace(_SLOT, gfn=0x10_0000).create(),
        _ahead(0x10_0000, 5),
        _ahead(0x0F_FFFF),
        read(0x10_0001),
    ),
)

_GOING = (
    _ahead_in(
        "pre-fault-then-delete",
        "Memory that only the call has mapped is gone with its slot.",
        _SLOT.create(),
        _ahead(0x100, 4),
        _SLOT.delete(),
        *(read(gfn) for gfn in range(0x100, 0x104)),
        _ahead(0x100, 4),
        replace(_SLOT, hva=at("b")).create(),
        read(0x100),
        _ahead(0x100, 4),
        read(0x103),
    ),
    _ahead_in(
        "pre-fault-again-after-a-deletion",
        "The call returns each time, even if a slot was deleted since the vCPU last ran.",
        _SLOT.create(),
        _NEXT.create(),
        read(0x100),
        *(_ahead(0x100, 4), _NEXT.delete(), _ahead(0x100, 4), _NEXT.create(), _ahead(0x104, 2)) * 3,
        _SLOT.delete(),
        _ahead(0x100),
        _ahead(0x104, 2),
        read(0x104),
        source="20a6cff3b283; kvm_mmu_reload, is_page_fault_stale",
    ),
    _ahead_in(
        "pre-fault-then-move",
        "Memory that only the call has mapped is gone from the old place after a move, even one "
        "that overlaps it.",
        _SLOT.create(),
        _ahead(0x100, 4),
        _SLOT.move(0x102),
        *(read(gfn) for gfn in range(0x100, 0x106)),
        _ahead(0x100),
        _ahead(0x102, 8),
        _SLOT.create(),
        *(read(gfn) for gfn in range(0x100, 0x106)),
    ),
    _ahead_in(
        "pre-fault-a-hole-then-create",
        "A hole that the call has reported is memory once a slot is created there.",
        _ahead(0x100),
        _SLOT.create(),
        read(0x100),
        _ahead(0x100, 4),
        read(0x101),
    ),
    _ahead_in(
        "pre-fault-of-each-vcpu",
        "After a move no vCPU reaches pages at the old place, whichever vCPU mapped them ahead.",
        _SLOT.create(),
        _ahead(0x100, 4),
        _ahead(0x100, 4, vcpu=1),
        read(0x100, vcpu=1),
        _SLOT.move(0x108),
        read(0x100, vcpu=1),
        read(0x108, vcpu=1),
        _ahead(0x100, vcpu=1),
        _ahead(0x108, 4, vcpu=1),
        read(0x10B),
        vcpus=2,
    ),
)

_BESIDE = (
    _ahead_in(
        "pre-fault-and-the-dirty-log",
        "Mapping ahead is no write: the log names only pages written before or after it.",
        replace(_SLOT, flags=LOG_DIRTY_PAGES).create(),
        write(0x100, 0x0A4EAD03),
        _SLOT.log(),
        _ahead(0x100, 4),
        write(0x102, 0x0A4EAD04),
        _SLOT.log(),
        _SLOT.log(),
        write(0x102, 0x0A4EAD05),
        write(0x103, 0x0A4EAD06),
        _SLOT.log(),
        tags=("dirty",),
    ),
    _ahead_in(
        "pre-fault-then-log",
        "Pages that were mapped ahead, writable, are tracked when logging begins.",
        _SLOT.create(),
        _ahead(0x100, 4),
        _SLOT.change(LOG_DIRTY_PAGES),
        write(0x101, 0x0A4EAD07),
        _SLOT.log(),
        _ahead(0x101),
        _SLOT.log(),
        tags=("dirty",),
    ),
    _ahead_in(
        "pre-fault-a-readonly-slot",
        "A READONLY slot is mapped ahead, and a write to it still exits.",
        replace(_SLOT, flags=READONLY).create(),
        _ahead(0x100, 4),
        read(0x101),
        write(0x101, 0x0A4EAD08),
        Inspect(),
        needs=("pre_fault", "readonly_mem"),
        tags=("readonly",),
    ),
    _ahead_in(
        "pre-fault-then-change-the-memory",
        "Memory mapped ahead follows the host's mapping; mapping ahead stops at a gap in it.",
        _SLOT.create(),
        _ahead(0x100, 4),
        ChangeHostMemory(at("a", 1)),
        read(0x101),
        _ahead(0x100, 4),
        ChangeHostMemory(at("a", 2), how="unmap"),
        _ahead(0x100, 4),
        _ahead(0x102, 2),
        _ahead(0x103),
        ChangeHostMemory(at("a", 2), how="map"),
        _ahead(0x102, 2),
        read(0x102),
        ChangeHostMemory(at("a", 3), how="forbid"),
        _ahead(0x103),
        ChangeHostMemory(at("a", 3), how="allow"),
        _ahead(0x103),
        needs=("pre_fault", "sync_mmu"),
        tags=("follow",),
    ),
)

_RACING = (
    Scenario(
        name="racing-pre-fault-and-delete",
        why="If memory is mapped ahead while its slot is deleted and created, both calls return.",
        source="3ccbf6f47098",
        tags=("racing", "slow", "pre-fault"),
        mappings=(A, B),
        needs=("pre_fault",),
        survey="read",
        vcpus=2,
        operations=(
            _SLOT.create(),
            Race(
                (
                    HostThread(
                        (
                            _SLOT.delete(),
                            replace(_SLOT, hva=at("b")).create(),
                            _SLOT.delete(),
                            _SLOT.create(),
                        ),
                        rounds=15,
                        pause=1,
                    ),
                ),
                (
                    GuestThread((_ahead(0x100), read(0x100), _ahead(0x103))),
                    GuestThread((_ahead(0x100, vcpu=1), read(0x101, vcpu=1))),
                ),
            ),
            _ahead(0x100, 4),
        ),
    ),
)

SCENARIOS = (*_ANYWHERE, *_PROGRESS, *_GOING, *_BESIDE, *_RACING)
"""All scenarios in which memory is mapped ahead."""
