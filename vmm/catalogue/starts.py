"""Page tables and code of a guest's in slots of the scenario, which change under them."""

from collections.abc import Iterator

import msgspec

from vmm.catalogue._build import HUGE, A, B, Slot, at, read, write
from vmm.catalogue._tables import PLAIN, PROGRAM_OFFSET, USED, Tables
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    NO_SLOT,
    PAGE_SIZE_BYTES,
    READONLY,
    SOMEWHERE,
    AnyOperation,
    EnableCap,
    Execute,
    Guest,
    HostWrite,
    Mapping,
    NewVm,
    Place,
    Scenario,
    Start,
)
from vmm.scenario.programs import ACCESSED, LOAD, STORE, entries, writes

_SLOT_ZAP_ALL = 1 << 7

_TABLES = Slot(1, 0x100, at("a"), pages=4)
_CODE = Slot(2, 0x104, at("a", 4), pages=4)
_GFNS = (0x104, 0x105, 0x106, 0x107)
_STORE, _LOAD = 0, 1
"""The pages that the two programs stand in, as the page tables have them."""

_DATA = 2
_A = Tables("a", 0x100, _GFNS)
_A_USED = Tables("a", 0x100, _GFNS, bits=USED)
_B = Tables("b", 0x100, tuple(reversed(_GFNS)))
_VALUE = 0x1BAD_F00D

_WALK = "FNAME(walk_addr_generic); Intel SDM vol. 3, 4.5"
_ZAP = "fcd1ec9cb59c; kvm_mmu_zap_memslot"
_BITS = "api.rst 4.8; update_accessed_dirty_bits; Intel SDM vol. 3, 4.8"


def _programs(mapping: str = "a") -> Iterator[AnyOperation]:
    """Yield what puts the programs into the first two pages after page tables."""
    for page, program in ((4, STORE), (5, LOAD)):
        yield from writes(Place(mapping, page * PAGE_SIZE_BYTES + PROGRAM_OFFSET), program)


def _start(
    name: str,
    why: str,
    *operations: AnyOperation,
    source: str = _WALK,
    needs: tuple[str, ...] = (),
    vcpus: int = 1,
    guest: Guest = SOMEWHERE,
    mappings: tuple[Mapping, ...] = (A, B),
) -> Scenario:
    return Scenario(
        name=f"start-{name}",
        why=why,
        source=source,
        tags=("start",),
        needs=needs,
        mappings=mappings,
        survey="none",
        vcpus=vcpus,
        guest=guest,
        operations=operations,
    )


def _accesses(tables: Tables = _A) -> tuple[AnyOperation, ...]:
    """Run what a page carries, write a word, and read it and another one."""
    return (
        tables.run(3),
        tables.access(_STORE, _DATA, _VALUE),
        tables.access(_LOAD, _DATA),
        tables.access(_LOAD, 3),
    )


_MOVED = Tables("b", 0x200, _GFNS, upper=PLAIN | ACCESSED)
_MOVING = Slot(1, 0x200, at("b"), pages=4)

_CHANGES = (
    _start(
        "with-tables-that-move",
        "Page tables are used where their slot is now, and nowhere else.",
        *_MOVED.lay(),
        *_programs(),
        _CODE.create(),
        _MOVING.move(0x300),
        _MOVED.run(2),
        Start(_MOVED.run(2).address, 0x300 * PAGE_SIZE_BYTES),
        read(0x106),
        _MOVING.create(),
        *_accesses(_MOVED),
        _MOVING.move(0x300),
        _MOVED.run(2),
        _MOVED.run(3),
        read(0x106),
        _MOVING.create(),
        *_accesses(_MOVED),
    ),
    _start(
        "after-tables-of-other-memory-came",
        "Page tables are read anew where a slot with other memory has taken their gpa.",
        *_A.lay(),
        *_B.lay(),
        *_programs(),
        _CODE.create(),
        _TABLES.create(),
        _A.run(2),
        _A.run(3),
        _TABLES.delete(),
        Slot(1, 0x100, at("b"), pages=4).create(),
        _A.run(2),
        _A.run(3),
        _A.access(3, 1, _VALUE),
        Slot(1, 0x100, at("b"), pages=4).delete(),
        _TABLES.create(),
        _A.run(2),
        _A.access(_STORE, 3, _VALUE),
    ),
    _start(
        "after-tables-were-missed",
        "A vCPU whose page tables lay in a hole goes on once a slot holds them.",
        *_A.lay(),
        *_programs(),
        _CODE.create(),
        _TABLES.create(),
        _A.run(2),
        _TABLES.delete(),
        _A.run(2),
        _TABLES.create(),
        _A.run(2),
        source="0e3223d8d00a; mmu_alloc_shadow_roots",
    ),
    _start(
        "after-one-table-of-other-memory-came",
        "Page tables lie in two slots, one of which is replaced: those in the other still hold.",
        *_A.lay(),
        *_B.lay(),
        *_programs(),
        _CODE.create(),
        Slot(1, 0x100, at("a"), pages=3).create(),
        Slot(3, 0x103, at("a", 3)).create(),
        _A.run(2),
        Slot(3, 0x103, at("a", 3)).delete(),
        _A.run(2),
        Slot(3, 0x103, at("b", 3)).create(),
        _A.run(2),
        _A.run(3),
        Slot(3, 0x103, at("b", 3)).delete(),
        Slot(3, 0x103, at("a", 3)).create(),
        _A.run(2),
        _A.access(_LOAD, 3),
    ),
    _start(
        "after-code-moved",
        "What page tables map is fetched, read and written where its slot is now.",
        *_A_USED.lay(),
        *_programs(),
        _TABLES.create(),
        _CODE.create(),
        *_accesses(_A_USED),
        _A_USED.run(3),
        _CODE.move(0x105),
        _A_USED.run(1),
        _A_USED.run(3),
        _A_USED.run(0),
        _CODE.create(),
        *_accesses(_A_USED),
        _A_USED.run(3),
        _CODE.delete(),
        _A_USED.run(3),
        Slot(2, 0x104, at("b", 4), pages=4).create(),
        _A_USED.run(3),
    ),
    _start(
        "on-tables-that-are-left-without-a-slot",
        "The slot of page tables in use is deleted, then that of the code, then the VM is closed.",
        *_A.lay(),
        *_programs(),
        _TABLES.create(),
        _CODE.create(),
        *_accesses(),
        _TABLES.delete(),
        _A.run(3),
        _CODE.delete(),
        _A.run(3),
        source=_ZAP,
    ),
    _start(
        "with-readonly-tables",
        "Page tables in a READONLY slot are used, and stay as they are.",
        *_A_USED.lay(),
        *_programs(),
        _CODE.create(),
        _TABLES.change(READONLY),
        *_accesses(_A_USED),
        _TABLES.delete(),
        _TABLES.create(),
        *_accesses(_A_USED),
        _TABLES.delete(),
        _TABLES.change(READONLY),
        *_accesses(_A_USED),
        source="ba6a35415455; update_accessed_dirty_bits",
        needs=("readonly_mem",),
    ),
    _start(
        "with-readonly-tables-not-used-before",
        "No accessed bit is set in page tables of a READONLY slot; in one that is not, it is.",
        *_A.lay(),
        *_programs(),
        _CODE.create(),
        _TABLES.change(READONLY),
        _A.run(3),
        _A.access(_STORE, _DATA, _VALUE),
        _TABLES.delete(),
        _TABLES.create(),
        _A.run(3),
        _A.access(_STORE, _DATA, _VALUE),
        source="ba6a35415455; update_accessed_dirty_bits",
        needs=("readonly_mem",),
    ),
    _start(
        "with-logged-tables",
        "Accessed and dirty bits that the processor sets are writes: the log names their pages.",
        *_A.lay(),
        *_programs(),
        _CODE.change(LOG_DIRTY_PAGES),
        _TABLES.change(LOG_DIRTY_PAGES),
        _A.run(3),
        _TABLES.log(),
        _A.access(_STORE, _DATA, _VALUE),
        _TABLES.log(),
        _CODE.log(),
        _A.access(_LOAD, _DATA),
        _TABLES.log(),
        _CODE.log(),
        source=_BITS,
    ),
    _start(
        "with-tables-logged-in-between",
        "A log that is switched on, in place or by a move, names the page tables written since.",
        *_A.lay(),
        *_programs(),
        _CODE.create(),
        _TABLES.create(),
        _A.run(3),
        _TABLES.change(LOG_DIRTY_PAGES),
        _A.access(_STORE, _DATA, _VALUE),
        _TABLES.log(),
        _TABLES.move(0x200, LOG_DIRTY_PAGES),
        _A.run(3),
        read(0x106),
        _TABLES.change(LOG_DIRTY_PAGES),
        _A.access(_STORE, 1, _VALUE),
        _TABLES.log(),
        _TABLES.create(),
        _A.access(_STORE, 3, _VALUE),
        source=_BITS,
    ),
)
"""Those that are run once more with KVM_X86_QUIRK_SLOT_ZAP_ALL disabled."""


def _without_quirk(scenario: Scenario) -> Scenario:
    return msgspec.structs.replace(
        scenario,
        name=f"{scenario.name}-without-quirk",
        source=_ZAP,
        tags=(*scenario.tags, "quirks"),
        needs=(*scenario.needs, "slot_zap_all_quirk"),
        operations=(EnableCap("DISABLE_QUIRKS2", _SLOT_ZAP_ALL), *scenario.operations),
    )


_LARGE = Slot(3, 0x200, at("huge"), pages=HUGE.pages)
_LEAF = Tables("huge", 0x220, _GFNS, page=0x20)
"""Of these only the lowest level is used: one above it in the same huge page would split that."""


def _mapped_to(tables: Tables, page: int, gfn: int) -> AnyOperation:
    """Let the guest, in real mode, have its page tables map a page to another gfn."""
    return write(tables.gfn + 3, gfn * PAGE_SIZE_BYTES | PLAIN, 8 * page)


_ROM = Slot(1, 0xFFFF0, at("a"), pages=8)
_TOP = 0xFFFF_0800

_NOWHERE = Guest(slot=NO_SLOT)
_RESET = 0xFFFF_FFF0
_ONE = Slot(1, 0x100, at("a"), pages=2)
_TWO = Slot(2, 0xFFFFE, at("b"), pages=2)


def _execute(gfn: int, vcpu: int = 0) -> Execute:
    return Execute(gfn * PAGE_SIZE_BYTES, vcpu)


def _bare(
    name: str, why: str, *operations: AnyOperation, vcpus: int = 1, source: str = ""
) -> Scenario:
    """Return a scenario in which there is no slot but those that its operations create."""
    return _start(
        f"without-slots-{name}",
        why,
        *operations,
        source=source or "api.rst 5, KVM_EXIT_INTERNAL_ERROR; 0774a964ef56",
        vcpus=vcpus,
        guest=_NOWHERE,
    )


def _emptied() -> Iterator[AnyOperation]:
    """Yield the deletion of four slots, each with a look at all of them."""
    for slot in reversed(range(4)):
        yield Slot(slot, 0x100 + 2 * slot, at("a", slot)).delete()
        yield from (_execute(0x100 + 2 * other) for other in range(4))


_BARE = (
    _bare(
        "at-the-reset-vector",
        "Without any slot a vCPU stops at the reset vector, and wherever else it starts.",
        Start(_RESET),
        Start(_RESET),
        _execute(0),
        _execute(0x100),
        Start(0x800, 0),
        Start(0x800, 0x1000),
        Start(_RESET),
        _ONE.log(),
    ),
    _bare(
        "until-the-first",
        "A vCPU that has run without slots finds the first one, and stops again after the last "
        "is deleted.",
        _execute(0x100),
        _ONE.create(),
        _execute(0x100),
        _execute(0x101),
        _execute(0x102),
        _ONE.delete(),
        _execute(0x100),
        _execute(0x101),
        _TWO.create(),
        _execute(0xFFFFE),
        Start(_RESET & -PAGE_SIZE_BYTES | 0x800),
        _execute(0x100),
        _TWO.move(0x100),
        _execute(0x100),
        _execute(0xFFFFE),
        _TWO.delete(),
        _execute(0x100),
        Start(_RESET),
    ),
    _bare(
        "after-the-last",
        "Slots are deleted from the highest gfn down; without any slot nothing can be executed.",
        *(Slot(slot, 0x100 + 2 * slot, at("a", slot)).create() for slot in range(4)),
        *(_execute(0x100 + 2 * slot) for slot in range(4)),
        *_emptied(),
        Slot(3, 0x106, at("b", 3)).create(),
        *(_execute(0x100 + 2 * slot) for slot in range(4)),
    ),
    _bare(
        "but-page-tables-and-code",
        "The only slots are those of page tables and code, which are deleted in turn.",
        *_A.lay(),
        *_programs(),
        _TABLES.create(),
        _CODE.create(),
        *_accesses(),
        _TABLES.delete(),
        _execute(0x104),
        _A.run(3),
        _CODE.delete(),
        _A.run(3),
        _execute(0x104),
        _TABLES.create(),
        _CODE.create(),
        _A.run(2),
        NewVm(),
        _A.run(2),
        _execute(0x104),
        source="0e3223d8d00a; mmu_check_root",
    ),
    _bare(
        "on-two-vcpus",
        "Two vCPUs stop without a slot, and find the first one.",
        _execute(0x100, 0),
        _execute(0x100, 1),
        _ONE.create(),
        _execute(0x101, 1),
        _execute(0x100, 0),
        _ONE.delete(),
        _execute(0x100, 0),
        _execute(0x101, 1),
        vcpus=2,
    ),
)
"""Those of VMs that have no slot at first, and none in the end."""

SCENARIOS = (
    _start(
        "on-unmapped-addresses",
        "An address that page tables do not map is a page fault; without an interrupt table that "
        "is a shutdown.",
        *Tables("a", 0x100, _GFNS[:3], upper=PLAIN | ACCESSED, bits=USED).lay(),
        *_programs(),
        _TABLES.create(),
        _CODE.create(),
        _A.run(2),
        _A.run(3),
        Start(1 << 21, _A.gpa),
        Start(1 << 30, _A.gpa),
        Start(1 << 39, _A.gpa),
        _A.access(_STORE, 3, _VALUE),
        _A.access(_STORE, _DATA, _VALUE),
        source="api.rst 5, KVM_EXIT_SHUTDOWN; Intel SDM vol. 3, 4.7",
    ),
    _start(
        "on-what-is-no-memory",
        "Through page tables, too, a hole is MMIO, and a READONLY slot is read.",
        *_A_USED.lay(),
        *_programs(),
        _TABLES.create(),
        Slot(2, 0x104, at("a", 4), pages=2).create(),
        Slot(3, 0x106, at("a", 6), flags=READONLY).create(),
        _A.access(_LOAD, 3),
        _A.access(_STORE, 3, _VALUE),
        _A.access(_STORE, _DATA, _VALUE),
        _A.access(_LOAD, _DATA),
        _A.run(3),
        Slot(4, 0x107, at("b", 7)).create(),
        _A.access(_STORE, 3, _VALUE),
        _A.run(3),
        source="api.rst 5, KVM_EXIT_MMIO",
        needs=("readonly_mem",),
    ),
    *_CHANGES,
    *map(_without_quirk, _CHANGES),
    _start(
        "after-the-guest-wrote-its-tables",
        "What a guest writes to page tables in use takes effect, also at its second write there.",
        *_A.lay(),
        *_programs(),
        _TABLES.create(),
        _CODE.create(),
        _mapped_to(_A, 8, 0x104),
        _A.run(2),
        _A.run(8),
        _mapped_to(_A, 2, 0x107),
        _A.run(2),
        _mapped_to(_A, 8, 0x106),
        _A.run(8),
        _mapped_to(_A, 2, 0x106),
        _A.run(2),
        source="account_shadowed; kvm_mmu_slot_gfn_write_protect",
    ),
    _start(
        "with-tables-in-a-huge-page",
        "A write to a page table within a huge page takes effect, whatever else the guest writes "
        "there.",
        *_A.lay(),
        *entries(at("a", 2), {0: (_LEAF.gfn + 3) * PAGE_SIZE_BYTES | PLAIN}),
        *(
            HostWrite(Place("huge", (_LEAF.page + 3) * PAGE_SIZE_BYTES + 8 * index + half), value)
            for index, gfn in enumerate(_GFNS)
            for half, value in ((0, gfn * PAGE_SIZE_BYTES | PLAIN), (4, 0))
        ),
        *_programs(),
        _TABLES.create(),
        _CODE.create(),
        _LARGE.create(),
        write(0x310, _VALUE),
        _A.run(2),
        write(0x311, _VALUE),
        _mapped_to(_LEAF, 2, 0x107),
        _A.run(2),
        write(0x312, _VALUE),
        _mapped_to(_LEAF, 2, 0x106),
        _A.run(2),
        read(0x310),
        source="account_shadowed; kvm_mmu_gfn_disallow_lpage",
        mappings=(A, HUGE),
    ),
    _start(
        "on-two-vcpus",
        "After a move of page tables no vCPU uses what it has cached of them.",
        *_A.lay(),
        *_programs(),
        _TABLES.create(),
        _CODE.create(),
        _A.run(2, 0),
        _A.run(2, 1),
        _TABLES.move(0x200),
        _A.run(2, 1),
        _A.run(2, 0),
        _TABLES.create(),
        _A.run(2, 1),
        _A.access(_STORE, _DATA, _VALUE, 0),
        _A.access(_LOAD, _DATA, vcpu=1),
        vcpus=2,
    ),
    _start(
        "where-firmware-is",
        "A READONLY slot that ends with 4 GiB, as firmware has it, is run, moved and replaced.",
        Start(_TOP),
        _ROM.change(READONLY),
        Start(_TOP),
        Start(_TOP + 0x7000),
        _ROM.delete(),
        Start(_TOP),
        Slot(1, 0xFFFF0, at("b"), pages=8, flags=READONLY).create(),
        Start(_TOP),
        _ROM.delete(),
        _ROM.move(0xFFFF8),
        Start(_TOP + 0x8000),
        Start(_TOP),
        source="api.rst 4.35, KVM_MEM_READONLY",
        needs=("readonly_mem",),
        guest=Guest(gpa=0x80_0000),
    ),
    *_BARE,
)
"""All scenarios of vCPUs that start in slots of the scenario."""
