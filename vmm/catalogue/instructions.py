"""Instructions that read memory and write it: on slots, READONLY slots, holes, and borders."""

from collections.abc import Iterable, Iterator

import msgspec

from vmm.catalogue._build import NOWHERE, Slot, at, creates, read
from vmm.catalogue._instructions import (
    FILL,
    LOCKED,
    PLAIN,
    UPDATES,
    every_update,
    gpa_of,
    instruction_scenario,
    over,
    tag,
    twice,
    update,
)
from vmm.scenario.features import Features
from vmm.scenario.instructions import INSTRUCTIONS
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    READONLY,
    SMM,
    AnyOperation,
    EnableCap,
    HarvestDirtyRing,
    Inspect,
    Instruction,
    Mapping,
    ResetDirtyRings,
    Scenario,
)

_LOW = Slot(1, 0x100, at("a"))
_HIGH = Slot(2, 0x101, at("b"))
_RO = Slot(3, 0x102, at("b", 1), 2, READONLY)
_TWIN = Slot(1, 0x100, at("a"), 2, LOG_DIRTY_PAGES)
_SMM_TWIN = Slot(SMM << 16 | 1, 0x100, at("b"), 2, LOG_DIRTY_PAGES)
_BORDER = gpa_of(0x101)
_START = gpa_of(0x102)
_END = gpa_of(0x104)
_ROOM = 64
"""The number of pages, of which each instruction gets one of its own."""

_LOGGED = Slot(1, 0x100, at("memory"), _ROOM, LOG_DIRTY_PAGES)
_MEMORY = Mapping("memory", _ROOM)
_EMULATED = tuple(row for row in UPDATES if row.is_emulated)
_EMULATED_LOCKED = tuple(row for row in _EMULATED if row.is_locked)
_EMULATED_ATOMIC = "910c57dfa4d1; emulator_cmpxchg_emulated"
_CMPXCHG = INSTRUCTIONS["lock-cmpxchg"]
_TABLES_STORED = tuple(
    Instruction(name, _BORDER - before, 4, 0x1234_5678, 0xABCD)
    for name in ("sgdt", "sidt")
    for before in (1, 3, 5, 6)
)
"""What is stored over a border, or up to it, in a way of its own."""


def _forced(op: Instruction) -> Instruction:
    """Return the same instruction with the prefix that makes KVM emulate it."""
    return msgspec.structs.replace(op, forced=True)


def _forced_in_smm(op: Instruction) -> Instruction:
    return msgspec.structs.replace(op, forced=True, as_id=SMM)


def _on_pages_of_their_own(equal: bool) -> tuple[Instruction, ...]:
    """Return each instruction on a page of its own; its comparison succeeds if ``equal``."""
    found = []
    for page, row in enumerate(UPDATES, 1):
        width = row.real[-1] if row.real else 0
        if width:
            each = list(twice(row, gpa_of(_LOGGED.gfn + 2 * page, 0x80), width, tag(0, 2 * page)))
            found.append(each[-1] if equal else each[0])
    return tuple(found)


def _logged(name: str, why: str, *operations: AnyOperation) -> Scenario:
    return instruction_scenario(
        name,
        why,
        *operations,
        source=_EMULATED_ATOMIC,
        tags=("dirty",),
        mappings=(_MEMORY,),
    )


_ON_MEMORY = (
    instruction_scenario(
        "instructions-locked-in-memory",
        "Atomic instructions of every width read and write a slot's memory, whether they compare "
        "equal or not.",
        _LOW.create(),
        *every_update(LOCKED, gpa_of(0x100, 0x40), tag(0, 0)),
    ),
    instruction_scenario(
        "instructions-in-memory",
        "Instructions that read and write without a lock do so in a slot's memory.",
        _LOW.create(),
        *every_update(PLAIN, gpa_of(0x100, 0x40), tag(0, 0)),
    ),
    instruction_scenario(
        "instructions-that-kvm-emulates",
        "KVM's emulator does to a slot's memory what the processor does, across page borders, too.",
        Slot(1, 0x100, at("a"), 2).create(),
        *map(_forced, every_update(_EMULATED, gpa_of(0x100, 0x40), tag(0, 0))),
        *map(_forced, over(_BORDER, _EMULATED)),
        *map(_forced, _TABLES_STORED),
        Inspect(),
        source=_EMULATED_ATOMIC,
    ),
    instruction_scenario(
        "instructions-that-kvm-emulates-in-smm",
        "KVM's emulator reads and writes the address space that the vCPU is in, and logs it there.",
        *creates(_TWIN, _SMM_TWIN),
        *map(_forced_in_smm, every_update(_EMULATED_LOCKED, gpa_of(0x100, 0x40), tag(1, 0))),
        _TWIN.log(),
        _SMM_TWIN.log(),
        *map(_forced_in_smm, over(_BORDER, _EMULATED, widest=True)),
        Inspect(),
        _TWIN.log(),
        _SMM_TWIN.log(),
        source=_EMULATED_ATOMIC,
        tags=("smm", "dirty"),
        needs=("smm",),
    ),
    instruction_scenario(
        "instructions-over-two-pages",
        "An instruction across a page border inside a slot reaches both pages, locked or not.",
        Slot(1, 0x100, at("a"), 2).create(),
        *over(_BORDER, UPDATES),
        tags=("straddle",),
    ),
    instruction_scenario(
        "instructions-over-two-slots",
        "An instruction across the border of two slots reads and writes memory of both.",
        *creates(_LOW, _HIGH),
        *over(_BORDER, UPDATES),
        tags=("straddle",),
    ),
    instruction_scenario(
        "instructions-after-a-move",
        "After a move an instruction exits at the slot's old gpa, and not at the new one.",
        _LOW.create(),
        *every_update(LOCKED[:2], gpa_of(0x100, 0x40), tag(0, 0)),
        _LOW.move(0x110),
        *every_update(LOCKED[:2], gpa_of(0x100, 0x40), FILL),
        *every_update(LOCKED[:2], gpa_of(0x110, 0x240), tag(0, 0)),
        _LOW.delete(),
        *every_update(LOCKED[:2], gpa_of(0x110, 0x240), FILL),
        _LOW.create(),
        *every_update(LOCKED[:2], gpa_of(0x100, 0x440), tag(0, 0)),
        source="api.rst 4.35; 12d6e7538e2d",
    ),
    instruction_scenario(
        "instructions-on-memory-that-is-not-there",
        "An instruction fails, or exits, where a slot's userspace address has no memory.",
        Slot(1, 0x100, at("nowhere")).create(),
        *every_update(UPDATES, gpa_of(0x100, 0x40), FILL),
        source="emulator_cmpxchg_emulated; hva_to_pfn",
        mappings=(NOWHERE,),
    ),
)

_ON_HOLES = (
    instruction_scenario(
        "instructions-locked-in-a-hole",
        "An atomic instruction without a slot exits for its read, and again for its write.",
        *every_update(LOCKED, gpa_of(0x100, 0x40), FILL),
        tags=("mmio",),
    ),
    instruction_scenario(
        "instructions-in-a-hole",
        "An instruction that reads and writes without a slot exits twice.",
        *every_update(PLAIN, gpa_of(0x100, 0x40), FILL),
        tags=("mmio",),
    ),
    instruction_scenario(
        "instructions-from-a-slot-into-a-hole",
        "The part in the slot is read and written there, the part outside exits twice.",
        _LOW.create(),
        *over(_BORDER, UPDATES),
        tags=("straddle",),
    ),
    instruction_scenario(
        "instructions-from-a-hole-into-a-slot",
        "The part outside exits twice, the part in the slot is read and written there.",
        _HIGH.create(),
        *over(_BORDER, UPDATES),
        tags=("straddle",),
    ),
    instruction_scenario(
        "instructions-where-a-slot-was",
        "An instruction exits where a slot was deleted, and reaches memory when it is created "
        "again.",
        *creates(_LOW, _HIGH),
        update(_CMPXCHG, gpa_of(0x101, 0x40), 4, tag(1, 0)),
        _HIGH.delete(),
        update(_CMPXCHG, gpa_of(0x101, 0x40), 4, FILL),
        *over(_BORDER, LOCKED, widest=True),
        _HIGH.create(),
        update(_CMPXCHG, gpa_of(0x101, 0x80), 4, tag(1, 0)),
        *over(_BORDER, LOCKED, widest=True),
        source="152482580a1b, ddfd1730fd82",
        tags=("mmio",),
    ),
)


def _readonly(name: str, why: str, *operations: AnyOperation, slow: bool = False) -> Scenario:
    return instruction_scenario(
        name,
        why,
        *operations,
        source="KVM_CAP_READONLY_MEM",
        tags=("readonly", "slow") if slow else ("readonly",),
        needs=("readonly_mem",),
    )


_ON_READONLY = (
    _readonly(
        "instructions-locked-on-a-readonly-slot",
        "An atomic instruction reads a READONLY slot, and exits with what it writes.",
        _RO.create(),
        *every_update(LOCKED, gpa_of(0x102, 0x40), tag(1, 1)),
        read(0x102, 0x40),
    ),
    _readonly(
        "instructions-on-a-readonly-slot",
        "An instruction reads a READONLY slot, and exits with what it writes.",
        _RO.create(),
        *every_update(PLAIN, gpa_of(0x102, 0x40), tag(1, 1)),
        read(0x102, 0x40),
    ),
    _readonly(
        "instructions-over-readonly-borders",
        "The part in a READONLY slot is read as memory, and exits when it is written.",
        *creates(_HIGH, _RO),
        *over(_START, UPDATES, widest=True),
        *over(gpa_of(0x103), UPDATES, widest=True),
        *over(_END, UPDATES, widest=True),
    ),
    _readonly(
        "instructions-on-a-readonly-slot-are-not-logged",
        "A write that exits is no write to memory: the log of a READONLY slot stays empty.",
        Slot(3, 0x102, at("b", 1), 2, READONLY | LOG_DIRTY_PAGES).create(),
        *every_update(LOCKED, gpa_of(0x102, 0x40), tag(1, 1)),
        _RO.log(),
    ),
)

_LOGS = (
    _logged(
        "instructions-that-kvm-emulates-are-logged",
        "Pages that KVM's emulator writes are in the dirty log, locked or not, even if the "
        "comparison fails.",
        _LOGGED.create(),
        *map(_forced, _on_pages_of_their_own(equal=True)),
        _LOGGED.log(),
        *map(_forced, _on_pages_of_their_own(equal=False)),
        _LOGGED.log(),
        _LOGGED.log(),
    ),
    _logged(
        "instructions-are-logged",
        "Each page that an instruction reads and writes is in the dirty log, and no other.",
        _LOGGED.create(),
        *_on_pages_of_their_own(equal=True),
        _LOGGED.log(),
        *_on_pages_of_their_own(equal=True),
        _LOGGED.log(),
        _LOGGED.log(),
    ),
    _logged(
        "instructions-that-compare-unequal-are-logged",
        "A comparison that fails writes the old value back, and that write is logged.",
        _LOGGED.create(),
        *_on_pages_of_their_own(equal=False),
        _LOGGED.log(),
        _LOGGED.log(),
    ),
    _logged(
        "instructions-over-two-pages-are-logged",
        "An instruction across a page border makes both pages dirty.",
        _LOGGED.create(),
        *over(gpa_of(_LOGGED.gfn + 3), LOCKED, widest=True),
        _LOGGED.log(),
        *over(gpa_of(_LOGGED.gfn + 9), PLAIN, widest=True),
        _LOGGED.log(),
    ),
    _logged(
        "instructions-are-logged-after-a-switch",
        "If logging is switched on while pages are mapped, the next atomic writes are logged.",
        msgspec.structs.replace(_LOGGED.create(), flags=0),
        *_on_pages_of_their_own(equal=True),
        _LOGGED.create(),
        *_on_pages_of_their_own(equal=True)[:8],
        _LOGGED.log(),
        _LOGGED.change(0),
        *_on_pages_of_their_own(equal=True),
        _LOGGED.create(),
        _LOGGED.log(),
    ),
)


_LONG_LOGS = _logged(
    "instructions-of-64-bits-are-logged",
    "In 64-bit mode, too, each page that is updated, pushed to or copied to is in the dirty log, "
    "and none that is only read.",
    _LOGGED.create(),
    Instruction("lock-xadd", gpa_of(_LOGGED.gfn + 1, 0x40), 8, 1, mode="long"),
    Instruction("or", gpa_of(_LOGGED.gfn + 3, 0x40), 4, 0xFF, mode="long"),
    Instruction("push", gpa_of(_LOGGED.gfn + 5, 0x40), 8, 7, mode="long"),
    Instruction("rep-stos", gpa_of(_LOGGED.gfn + 7, 0xFF8), 8, compare=5, count=2, mode="long"),
    _LOGGED.log(),
    Instruction("pop", gpa_of(_LOGGED.gfn + 5, 0x40), 8, mode="long"),
    Instruction(
        "rep-movs",
        gpa_of(_LOGGED.gfn + 10, 0xFF8),
        8,
        source=gpa_of(_LOGGED.gfn + 13),
        count=2,
        mode="long",
    ),
    _LOGGED.log(),
    Instruction("lock-cmpxchg", gpa_of(_LOGGED.gfn + 1, 0x80), 8, 9, 1, mode="long"),
    _LOGGED.log(),
    _LOGGED.log(),
)


def _ring(features: Features) -> Scenario:
    size_bytes = features.dirty_ring_bytes or 4096
    return instruction_scenario(
        "instructions-are-in-the-ring",
        "A vCPU's dirty ring names each page that an atomic instruction wrote.",
        EnableCap("DIRTY_LOG_RING", size_bytes),
        _LOGGED.create(),
        *_on_pages_of_their_own(equal=True),
        HarvestDirtyRing(),
        ResetDirtyRings(),
        *_on_pages_of_their_own(equal=False),
        HarvestDirtyRing(),
        source="api.rst KVM_CAP_DIRTY_LOG_RING; 910c57dfa4d1",
        tags=("dirty", "ring"),
        needs=("dirty_ring_bytes",),
        mappings=(_MEMORY,),
    )


_IN_SMM = instruction_scenario(
    "instructions-in-smm",
    "In system management mode an atomic instruction reaches the slots of as_id 1.",
    *creates(_LOW, Slot(SMM << 16 | 1, 0x100, at("b"))),
    *(
        msgspec.structs.replace(update(row, gpa_of(0x100, 0x40), 4, tag(as_id, 0)), as_id=as_id)
        for row in LOCKED
        if 4 in row.real
        for as_id in (0, SMM)
    ),
    Inspect(),
    source="api.rst 4.35; kvm_arch_vcpu_memslots_id",
    needs=("smm",),
)

_LONG = (
    instruction_scenario(
        "instructions-of-64-bits",
        "In 64-bit mode instructions of up to 16 bytes read and write a slot's memory.",
        _LOW.create(),
        *every_update(UPDATES, gpa_of(0x100, 0x40), tag(0, 0), "long"),
    ),
    instruction_scenario(
        "instructions-of-64-bits-in-a-hole",
        "In 64-bit mode an instruction without a slot exits twice, if KVM can emulate it.",
        *every_update(UPDATES, gpa_of(0x100, 0x40), FILL, "long"),
        tags=("mmio",),
    ),
    instruction_scenario(
        "instructions-of-64-bits-over-borders",
        "In 64-bit mode an instruction is split at the border of a slot and a hole.",
        *creates(_LOW, Slot(2, 0x102, at("b"))),
        *over(_BORDER, UPDATES, "long", widest=True),
        *over(_START, UPDATES, "long", widest=True),
        tags=("straddle",),
    ),
)


_LONG_BORDERS = (
    instruction_scenario(
        "instructions-of-64-bits-over-pages-and-slots",
        "In 64-bit mode, too, an instruction across the border of two pages, or of two slots, "
        "reaches both.",
        *creates(Slot(1, 0x100, at("a"), 2), Slot(2, 0x102, at("b"))),
        *over(_BORDER, UPDATES, "long"),
        *over(_START, UPDATES, "long"),
        Inspect(),
        tags=("straddle", "slow"),
    ),
    _readonly(
        "instructions-of-64-bits-on-a-readonly-slot",
        "In 64-bit mode an instruction reads a READONLY slot, and exits with what it writes.",
        *creates(_HIGH, _RO),
        *every_update(UPDATES, gpa_of(0x102, 0x40), tag(1, 1), "long"),
        *over(_START, UPDATES, "long", widest=True),
        *over(gpa_of(0x103), UPDATES, "long", widest=True),
        *over(_END, UPDATES, "long", widest=True),
        Inspect(),
        slow=True,
    ),
)


_ACCESSES = tuple(row for row in INSTRUCTIONS.values() if row.name.startswith(("load", "store")))


def _accesses(gpa: int, widths: Iterable[int] = (1, 2, 4, 8, 16)) -> Iterator[Instruction]:
    """Yield a store, and a load of the stored value, of each width in 64-bit mode."""
    for width in widths:
        for row in reversed(_ACCESSES):
            if width in row.long:
                yield Instruction(
                    row.name,
                    gpa,
                    width,
                    0x1122334455667788,
                    value_high=0x99AABBCCDDEEFF00,
                    mode="long",
                )


_WIDE = (
    instruction_scenario(
        "accesses-of-up-to-16-bytes",
        "Loads and stores of up to 16 bytes reach one or two pages of a slot, and exit in a hole.",
        *creates(_LOW, _HIGH),
        *_accesses(gpa_of(0x100, 0x40)),
        *_accesses(_BORDER - 3, (4, 8, 16)),
        *_accesses(gpa_of(0x110, 0x40)),
        tags=("access",),
    ),
    instruction_scenario(
        "accesses-of-up-to-16-bytes-over-borders",
        "If 8 or 16 bytes cross the border of a slot, the part outside exits.",
        *creates(_HIGH, _RO),
        *_accesses(_BORDER - 5, (8, 16)),
        *_accesses(_START - 5, (8, 16)),
        *_accesses(_END - 5, (8, 16)),
        *_accesses(gpa_of(0x102, 0x40)),
        tags=("access", "straddle"),
        needs=("readonly_mem",),
    ),
    instruction_scenario(
        "accesses-of-up-to-16-bytes-are-logged",
        "Each page that a store of 8 or 16 bytes writes is in the dirty log, both at a border.",
        _LOGGED.create(),
        *_accesses(gpa_of(_LOGGED.gfn + 2, 0x40), (16,)),
        *_accesses(gpa_of(_LOGGED.gfn + 5) - 4, (8,)),
        _LOGGED.log(),
        *_accesses(gpa_of(_LOGGED.gfn + 9) - 4, (16,)),
        _LOGGED.log(),
        tags=("access", "dirty"),
        mappings=(_MEMORY,),
    ),
)


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios of instructions that read and write memory."""
    ring = _ring(features)
    in_memory = (*_ON_MEMORY, *_ON_HOLES, *_ON_READONLY, *_LOGS, ring, _IN_SMM)
    return (*in_memory, *_LONG, _LONG_LOGS, *_LONG_BORDERS, *_WIDE)
