"""The kernel's internal slots (TSS, identity map, APIC page) together with user slots.

A backend may have none of them; then the same calls succeed, and no user slot is refused.
"""

from typing import Literal

from vmm.catalogue._build import A, B, Slot, at, creates, deletes, read, write
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    READONLY,
    AnyOperation,
    CoalesceMmio,
    CreateIrqchip,
    CreateVcpu,
    Execute,
    Guest,
    Inspect,
    Instruction,
    NewVm,
    Scenario,
    SetApicBase,
    SetIdentityMapAddr,
    SetTssAddr,
    Touch,
    UnmapInternalSlots,
)

_TSS = 0xFFF00000  # not next to the default place of the identity map
_TSS_GFN = _TSS >> 12
_IDENTITY_MAP = 0xFFFBC000
_APIC_GFN = 0xFEE00
_IOAPIC = 0xFEC00000
_APIC = _APIC_GFN << 12
_HOLE = 0x20_0040
_BASES = (0xFED0_0000, 0x20_0000)
_TABLE_GFN = 0x1000
_ACCESSES: tuple[Literal["read", "write"], ...] = ("read", "write")
_WIDTHS: tuple[Literal[1, 2, 4], ...] = (1, 2, 4)

_API_TSS = "api.rst 4.36 KVM_SET_TSS_ADDR"
_API_IDENTITY = "api.rst 4.40 KVM_SET_IDENTITY_MAP_ADDR"
_INTERNAL = "__x86_set_memory_region"


def _internal(
    name: str,
    why: str,
    source: str,
    *operations: AnyOperation,
    tags: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
) -> Scenario:
    # The content of an internal slot is not specified, so no survey reads it.
    return Scenario(
        name=name,
        why=why,
        source=source,
        tags=("internal", *tags),
        needs=needs,
        mappings=(A, B),
        survey="none",
        operations=operations,
    )


_AROUND = (
    Slot(1, _TSS_GFN - 1, at("a")),
    Slot(2, _TSS_GFN + 3, at("b")),
)

_TSS_SCENARIOS = (
    _internal(
        "tss-then-slots-over-it",
        "A user slot over any page of the TSS is EEXIST; the pages next to it are free.",
        _INTERNAL,
        SetTssAddr(_TSS),
        *creates(
            *(Slot(3, _TSS_GFN + page, at("a", 1)) for page in range(3)),
            Slot(4, _TSS_GFN - 1, at("a"), pages=2),
            Slot(5, _TSS_GFN - 1, at("a"), pages=5),
        ),
        *deletes(*(Slot(number, 0, 0) for number in (3, 4, 5))),
        *creates(*_AROUND),
        read(_TSS_GFN - 1),
        read(_TSS_GFN + 3),
    ),
    _internal(
        "tss-then-a-move-onto-it",
        "A move onto the TSS is EEXIST, and the slot stays.",
        _INTERNAL,
        SetTssAddr(_TSS),
        Slot(1, 0x100, at("a"), pages=2).create(),
        Slot(1, _TSS_GFN - 1, at("a"), pages=2).create(),
        Slot(1, _TSS_GFN + 2, at("a"), pages=2).create(),
        Slot(1, _TSS_GFN + 3, at("a"), pages=2).create(),
        Slot(1, 0, 0).delete(),
    ),
    _internal(
        "tss-onto-a-slot",
        "KVM_SET_TSS_ADDR onto any page of a user slot is EEXIST, and succeeds once that is "
        "deleted.",
        _INTERNAL,
        Slot(1, _TSS_GFN + 2, at("a"), pages=2).create(),
        SetTssAddr(_TSS),
        SetTssAddr(_TSS + 0x3000),
        read(_TSS_GFN + 2),
        read(_TSS_GFN + 3),
        Slot(1, 0, 0).delete(),
        SetTssAddr(_TSS),
    ),
    _internal(
        "tss-twice",
        "The TSS is placed once; the next VM has one of its own.",
        _INTERNAL,
        SetTssAddr(_TSS),
        SetTssAddr(_TSS - 0x10000),
        SetTssAddr(_TSS),
        Slot(1, _TSS_GFN - 0x10, at("a")).create(),
        NewVm(),
        SetTssAddr(_TSS - 0x10000),
        Slot(1, _TSS_GFN, at("a")).create(),
    ),
    _internal(
        "tss-beyond-4-gib",
        "The three pages end below 4 GiB, else EINVAL; a failed call leaves nothing behind.",
        _API_TSS,
        *(SetTssAddr(gpa) for gpa in (0xFFFFE000, 0xFFFFF000, 1 << 32, 1 << 63, 0xFFFFD001)),
        SetTssAddr(_TSS),
        tags=("errno",),
    ),
)

_IDENTITY_SCENARIOS = (
    _internal(
        "identity-map-before-and-after-a-vcpu",
        "The identity map is placed before any vCPU exists; after that the call is EINVAL.",
        _API_IDENTITY,
        SetIdentityMapAddr(_IDENTITY_MAP - 0x1000),
        SetIdentityMapAddr(0),
        SetIdentityMapAddr(_IDENTITY_MAP),
        CreateVcpu(),
        SetIdentityMapAddr(_IDENTITY_MAP),
        SetIdentityMapAddr(0),
        *creates(Slot(1, _IDENTITY_MAP >> 12, at("a")), Slot(2, 0x100, at("b"))),
        read(0x100),
        SetIdentityMapAddr(_IDENTITY_MAP),
        SetIdentityMapAddr(0),
        tags=("errno",),
    ),
    _internal(
        "identity-map-onto-a-slot",
        "KVM_CREATE_VCPU is EEXIST while a slot lies where the identity map goes, and succeeds "
        "once that is deleted.",
        _INTERNAL,
        Slot(1, _IDENTITY_MAP >> 12, at("a")).create(),
        SetIdentityMapAddr(_IDENTITY_MAP),
        CreateVcpu(),
        Slot(1, 0, 0).delete(),
        NewVm(),
        SetIdentityMapAddr(_IDENTITY_MAP),
        CreateVcpu(),
        CreateVcpu(),
        Slot(1, 0x100, at("a")).create(),
        read(0x100),
    ),
    _internal(
        "identity-map-and-tss-side-by-side",
        "Internal slots do not overlap each other either.",
        _INTERNAL,
        SetIdentityMapAddr(_TSS + 0x1000),
        SetTssAddr(_TSS),
        CreateVcpu(),
    ),
)


def _at_bases() -> tuple[Touch, ...]:
    """Read registers where a local APIC may be moved to, and beside them."""
    offsets = (-4, 0x30, 0x32, 0xFFC, 0x1000)
    return tuple(Touch(base + offset) for base in _BASES for offset in offsets)


def _ioapic_reads() -> tuple[Touch, ...]:
    return tuple(Touch(_IOAPIC + offset) for offset in (0, 0x10, 0xFC, 0xFE, 0x100))


_APIC_SCENARIOS = (
    _internal(
        "irqchip-before-and-after-a-vcpu",
        "KVM_CREATE_IRQCHIP works once, and before any vCPU; slots may come before it.",
        "api.rst 4.24 KVM_CREATE_IRQCHIP",
        Slot(1, 0x100, at("a")).create(),
        CreateIrqchip(),
        CreateIrqchip(),
        CreateVcpu(),
        CreateIrqchip(),
        read(0x100),
        NewVm(),
        CreateVcpu(),
        CreateIrqchip(),
        tags=("errno",),
    ),
    _internal(
        "ioapic-in-the-kernel",
        "Accesses to the registers of an I/O APIC in the kernel do not exit, accesses beside them "
        "do; a slot may lie over them.",
        "api.rst 4.24 KVM_CREATE_IRQCHIP; ioapic_mmio_read, ioapic_mmio_write",
        CreateIrqchip(),
        *(
            Touch(_IOAPIC + offset, access, width=width, value=0)
            for offset in (0, 0x0F, 0x10, 0x12, 0xFC, 0xFF, 0x100, 0xFFC)
            for access in _ACCESSES
            for width in _WIDTHS
        ),
        *(Touch(_IOAPIC - before) for before in (4, 2, 1)),
        Touch(_IOAPIC - 2, "write", value=0x00005A5A),
        Slot(1, _IOAPIC >> 12, at("a")).create(),
        read(_IOAPIC >> 12),
        write(_IOAPIC >> 12, 0x5A5A5A5A),
        read(_IOAPIC >> 12),
        Slot(1, _IOAPIC >> 12, at("a")).delete(),
        Slot(1, _IOAPIC >> 12, at("b"), flags=READONLY).create(),
        read(_IOAPIC >> 12),
        Touch(_IOAPIC, "write"),
        Touch(_IOAPIC + 0x100, "write"),
        NewVm(),
        Touch(_IOAPIC),
        needs=("irqchip", "readonly_mem"),
    ),
    _internal(
        "ioapic-read-where-writes-are-coalesced",
        "Whoever keeps only the writes to an address leaves its reads to the I/O APIC there, "
        "whichever of them came first.",
        "api.rst 4.24, 4.116; kvm_io_bus_read",
        CoalesceMmio(_IOAPIC, 0x100),
        CreateIrqchip(),
        *_ioapic_reads(),
        CoalesceMmio(_IOAPIC, 0x100),
        *_ioapic_reads(),
        CoalesceMmio(_IOAPIC, 0x100, on=False),
        *_ioapic_reads(),
        needs=("irqchip", "coalesced_mmio"),
    ),
    _internal(
        "apic-page-then-a-slot-over-it",
        "With a local APIC in the kernel a slot over its page may be EEXIST; the pages beside it "
        "are free, and exit until then.",
        f"{_INTERNAL}; apic_mmio_in_range",
        CreateIrqchip(),
        CreateVcpu(),
        read(_APIC_GFN - 1, 0xFFC),
        read(_APIC_GFN + 1, 0),
        *creates(
            Slot(1, _APIC_GFN, at("a")),
            Slot(2, _APIC_GFN - 1, at("b")),
            Slot(3, _APIC_GFN + 1, at("b", 1)),
        ),
        needs=("irqchip",),
    ),
    _internal(
        "apic-page-of-no-apic",
        "Without a local APIC in the kernel a slot may lie over its page, which only KVM's "
        "emulator takes for MMIO.",
        "vcpu_is_mmio_gpa",
        Slot(1, _APIC_GFN - 1, at("a"), pages=3).create(),
        *(
            access
            for gfn in range(_APIC_GFN - 1, _APIC_GFN + 2)
            for access in (read(gfn), write(gfn, 0x5A5A0000 | gfn & 0xFF), read(gfn))
        ),
        Touch(_APIC_GFN * 0x1000 - 2),
        Touch(_APIC_GFN * 0x1000 + 0xFFE, "write", value=0x01020304),
        Execute(_APIC_GFN * 0x1000),
        Slot(1, _APIC_GFN, at("a"), pages=3).create(),
        read(_APIC_GFN - 1),
        read(_APIC_GFN + 1),
    ),
    _internal(
        "apic-page-copied-to-and-from-a-hole",
        "What copies between a hole and a slot over the page of no local APIC is emulated: KVM "
        "takes that page for MMIO, and the pages beside it for memory.",
        "vcpu_is_mmio_gpa",
        Slot(1, _APIC_GFN - 1, at("a"), pages=3).create(),
        *(
            Instruction("movs", to, source=origin)
            for gpa in (_APIC - 0x40, _APIC - 2, _APIC, _APIC + 0xFFC, _APIC + 0x1040)
            for to, origin in ((gpa, _HOLE), (_HOLE, gpa))
        ),
        Inspect(),
    ),
    _internal(
        "apic-page-where-kvm-emulates",
        "KVM's emulator takes the page of no local APIC for MMIO, for instructions of every kind.",
        "vcpu_is_mmio_gpa, emulator_cmpxchg_emulated",
        Slot(1, _APIC_GFN - 1, at("a"), pages=3).create(),
        *(
            Instruction(name, gpa, value=0x5A5A_0000, forced=True)
            for name in ("load", "store", "add", "lock-xadd", "xchg")
            for gpa in (_APIC - 0x40, _APIC - 2, _APIC + 0x40, _APIC + 0x1040)
        ),
        Inspect(),
    ),
    _internal(
        "apic-page-moved",
        "The registers of a local APIC are answered where its base says, without an exit, and "
        "nowhere else.",
        "__kvm_apic_set_base, apic_mmio_in_range",
        CreateIrqchip(),
        Slot(1, 0x100, at("a")).create(),
        *_at_bases(),
        SetApicBase(_BASES[0]),
        *_at_bases(),
        SetApicBase(_BASES[1]),
        *_at_bases(),
        read(0x100),
        needs=("irqchip",),
    ),
    _internal(
        "apic-page-onto-a-slot",
        "KVM_CREATE_VCPU is EEXIST while a slot lies over the APIC access page; the slot stays, "
        "and can be deleted.",
        _INTERNAL,
        Slot(1, _APIC_GFN, at("a")).create(),
        CreateIrqchip(),
        CreateVcpu(),
        Slot(1, 0x100, at("a")).create(),
        read(0x100),
        needs=("irqchip",),
    ),
)


_MEMORY_SCENARIOS = tuple(
    _internal(
        f"{name}-without-its-memory",
        "The process may unmap the memory of an internal slot: the slot stays, others can be "
        "created and deleted, and the VM is closed without a warning.",
        _INTERNAL,
        *setup,
        UnmapInternalSlots(),
        *creates(Slot(1, gfn, at("a")), Slot(2, 0x100, at("b"))),
        UnmapInternalSlots(),
        Slot(2, 0, 0).delete(),
        NewVm(),
        *setup,
        UnmapInternalSlots(),
        needs=(need,),
    )
    for name, gfn, need, setup in (
        ("tss", _TSS_GFN, "internal_tss", (SetTssAddr(_TSS),)),
        (
            "identity-map",
            _IDENTITY_MAP >> 12,
            "internal_identity",
            (SetIdentityMapAddr(_IDENTITY_MAP), CreateVcpu()),
        ),
        ("apic-page", _APIC_GFN, "internal_apic", (CreateIrqchip(), CreateVcpu())),
    )
)


SCENARIOS = (
    *_TSS_SCENARIOS,
    *_IDENTITY_SCENARIOS,
    *_APIC_SCENARIOS,
    *_MEMORY_SCENARIOS,
)


def slow_scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the scenario that takes long because it uses every slot id."""
    return (_tss_with_a_full_table(features.nr_memslots),)


def _tss_with_a_full_table(nr_memslots: int) -> Scenario:
    ids = [number for number in range(nr_memslots) if number != Guest().slot]
    slots = [Slot(number, _TABLE_GFN + 2 * number, at("a")) for number in ids]
    last = slots[-1]
    return _internal(
        "tss-with-a-full-table",
        "Internal slots have their own ids, so the TSS is placed even if all user ids are in use.",
        "6fe639792c7b",
        *creates(*slots),
        SetTssAddr(_TSS),
        read(slots[0].gfn),
        read(last.gfn),
        last.move(_TSS_GFN),
        last.delete(),
        Slot(last.slot, _TSS_GFN + 3, at("b")).create(),
        read(_TSS_GFN + 3),
        tags=("table", "slow"),
    )
