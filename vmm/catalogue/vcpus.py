"""Several vCPUs: a change reaches those that had touched a gpa and those that had not."""

from collections.abc import Iterator
from typing import Literal

import msgspec

from vmm.catalogue._build import API_MMIO, STALE_SLOT, A, B, Slot, at, creates, read, write
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    CreateVcpu,
    Execute,
    Scenario,
    Survey,
    Touch,
)

_ONE = Slot(1, 0x100, at("a"), pages=2)
_MOST_VCPUS = 1024
"""KVM_CAP_MAX_VCPUS of most kernels, or more."""


def _two(
    name: str,
    why: str,
    *operations: AnyOperation,
    source: str = STALE_SLOT,
    survey: Survey = "none",
) -> Scenario:
    return Scenario(
        name=name,
        why=why,
        source=source,
        tags=("vcpus",),
        mappings=(A, B),
        survey=survey,
        vcpus=2,
        operations=operations,
    )


_WIDTHS: tuple[Literal[1, 2, 4], ...] = (1, 2, 4)
_HIGH_GFN = 0x12_3456  # Above 4 GiB.


def _exits_at_any_width() -> Iterator[AnyOperation]:
    slots = [
        Slot(number, gfn, at("a", number % 4), flags=READONLY if number % 2 else 0)
        for base in (0x100, _HIGH_GFN)
        for number, gfn in enumerate(range(base, base + 4), 1 if base < _HIGH_GFN else 11)
    ]
    yield from creates(*slots)
    for vcpu in (0, 1):
        for base in (0x100, _HIGH_GFN):
            for page in range(5):
                yield from _accesses((base + page) * PAGE_SIZE_BYTES, vcpu)
    for slot in slots:
        yield slot.delete()
        yield from (read(slot.gfn, vcpu=vcpu) for vcpu in (1, 0))


def _accesses(gpa: int, vcpu: int) -> Iterator[Touch]:
    """Read and write at the start of a page, and across it."""
    for width in _WIDTHS:
        for place in dict.fromkeys((gpa, gpa - width // 2)):
            yield Touch(place, "write", width, 0x9182_7364 >> 32 - 8 * width, vcpu)
            yield Touch(place, width=width, vcpu=vcpu)


SCENARIOS = (
    _two(
        "vcpus-see-the-same-slots",
        "Every vCPU sees every change, in the surveys before and after it.",
        _ONE.create(),
        _ONE.move(0x101),
        _ONE.delete(),
        survey="write",
    ),
    msgspec.structs.replace(
        _two(
            "vcpus-exit-at-any-width",
            "On every vCPU each access to a hole or a READONLY slot, or across a border, exits "
            "with its own width, above 4 GiB, too; no vCPU sees what is deleted there.",
            *_exits_at_any_width(),
            source=API_MMIO,
        ),
        needs=("readonly_mem",),
    ),
    _two(
        "vcpus-create-after-cached-mmio",
        "After creation a vCPU that got an MMIO exit reaches memory, as does one that got none.",
        read(0x100, vcpu=0),
        _ONE.create(),
        read(0x100, vcpu=1),
        read(0x100, vcpu=0),
        source="152482580a1b, ddfd1730fd82",
    ),
    _two(
        "vcpus-delete-after-cached-memory",
        "After deletion a vCPU that reached memory gets an MMIO exit, as does one that did not.",
        _ONE.create(),
        read(0x100, vcpu=0),
        write(0x101, 0x11112222, vcpu=0),
        _ONE.delete(),
        read(0x100, vcpu=1),
        read(0x100, vcpu=0),
        write(0x101, 0x33334444, vcpu=0),
        write(0x101, 0x55556666, vcpu=1),
    ),
    _two(
        "vcpus-move-after-cached-memory",
        "After a move neither vCPU reaches the old place, and both reach the new one.",
        _ONE.create(),
        read(0x100, vcpu=0),
        read(0x104, vcpu=0),
        _ONE.move(0x104),
        *(read(gfn, vcpu=vcpu) for gfn in (0x100, 0x104) for vcpu in (1, 0)),
        *(write(gfn, 0x77 + gfn, vcpu=vcpu) for gfn in (0x100, 0x104) for vcpu in (0, 1)),
    ),
    _two(
        "vcpus-other-memory-after-cached-memory",
        "A gpa that gets other memory shows it even to a vCPU that has cached the old memory.",
        _ONE.create(),
        read(0x100, vcpu=0),
        _ONE.delete(),
        Slot(1, 0x100, at("b"), pages=2).create(),
        read(0x100, vcpu=0),
        read(0x100, vcpu=1),
        write(0x100, 0x600D, vcpu=0),
        source="kvm_arch_flush_shadow_memslot",
    ),
    _two(
        "vcpus-share-what-they-write",
        "One vCPU reads what the other writes, even through another slot.",
        *creates(_ONE, Slot(2, 0x110, at("a"), pages=2)),
        write(0x100, 0xAAAA0001, vcpu=0),
        read(0x100, vcpu=1),
        write(0x110, 0xBBBB0002, vcpu=1),
        read(0x100, vcpu=0),
        source="api.rst 4.35 KVM_SET_USER_MEMORY_REGION",
    ),
    _two(
        "vcpus-share-a-dirty-log",
        "The log of a slot names the pages that any vCPU wrote, each page once.",
        Slot(1, 0x100, at("a"), 4, LOG_DIRTY_PAGES).create(),
        write(0x100, 1, vcpu=0),
        write(0x101, 2, vcpu=1),
        write(0x103, 3, vcpu=0),
        write(0x103, 4, vcpu=1),
        _ONE.log(),
        write(0x102, 5, vcpu=1),
        _ONE.log(),
        source="api.rst 4.8 KVM_GET_DIRTY_LOG",
    ),
    _two(
        "vcpus-log-after-cached-writes",
        "A vCPU with writable translations is tracked as soon as logging is on.",
        _ONE.create(),
        write(0x100, 1, vcpu=0),
        _ONE.change(LOG_DIRTY_PAGES),
        write(0x100, 2, vcpu=0),
        _ONE.log(),
        write(0x100, 3, vcpu=0),
        _ONE.log(),
        write(0x100, 4, vcpu=1),
        _ONE.log(),
        source="api.rst 4.8; kvm_mmu_slot_apply_flags",
    ),
    _two(
        "vcpus-execute-after-a-move",
        "After a move neither vCPU fetches from the old place, whether it had run there or not.",
        _ONE.create(),
        Execute(0x100 * PAGE_SIZE_BYTES, vcpu=0),
        _ONE.move(0x104),
        Execute(0x104 * PAGE_SIZE_BYTES, vcpu=1),
        Execute(0x104 * PAGE_SIZE_BYTES, vcpu=0),
        Execute(0x100 * PAGE_SIZE_BYTES, vcpu=0),
        Execute(0x100 * PAGE_SIZE_BYTES, vcpu=1),
    ),
    msgspec.structs.replace(
        _two(
            "vcpus-refused-by-the-thousand",
            "vCPUs that are refused do not count among those that a VM has room for.",
            *(CreateVcpu(0),) * (_MOST_VCPUS + 1),
            CreateVcpu(1),
            read(0x100, vcpu=1),
            source="kvm_vm_ioctl_create_vcpu: created_vcpus",
        ),
        tags=("vcpus", "slow"),
    ),
)
"""All scenarios with two vCPUs."""
