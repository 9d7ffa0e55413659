"""A guest in system management mode whose page tables and code are in slots of as_id 1."""

from dataclasses import replace

import msgspec

from vmm.catalogue._area import Area
from vmm.catalogue._build import Slot, at, creates, read, write
from vmm.catalogue._starts import (
    CODE,
    DATA,
    GFNS,
    LOADING,
    STORING,
    TABLES,
    USUAL,
    VALUE,
    WALK,
    accesses,
    lowest_level,
    programs,
)
from vmm.scenario.content import STUB_OFFSET
from vmm.scenario.operations import LOG_DIRTY_PAGES, PAGE_SIZE_BYTES, SMM, AnyOperation, Start
from vmm.scenario.pagetables import PLAIN, USED, Tables

_BACKWARD = tuple(reversed(GFNS))
_USED = replace(USUAL, bits=USED)
_OTHER = Tables("b", USUAL.gfn, _BACKWARD)
"""Page tables at the same gfns, on other memory, which map the same pages backward."""

_SMM_TABLES, _SMM_CODE = (replace(slot, slot=SMM << 16 | slot.slot) for slot in (TABLES, CODE))
_OTHER_TABLES = replace(TABLES, hva=at("b"))
_OTHER_CODE = replace(CODE, hva=at("b", 4))
_REAL_START = CODE.gfn * PAGE_SIZE_BYTES + STUB_OFFSET
_LEAF, _OTHER_LEAF = USUAL.gfn + 3, 0x108
_SMM_LEAF = Slot(SMM << 16 | 3, _OTHER_LEAF, at("b"))


def _in_smm(start: Start) -> AnyOperation:
    return msgspec.structs.replace(start, as_id=SMM)


def _run(page: int) -> AnyOperation:
    """Start at the code in a page, in SMM."""
    return _in_smm(USUAL.run(page))


def _leads_to(leaf: int) -> AnyOperation:
    """Let the guest, in SMM, change which table of the lowest level its page tables lead to."""
    return write(USUAL.gfn + 2, leaf * PAGE_SIZE_BYTES | PLAIN, 0, as_id=SMM)


def _mapped_to(page: int, gfn: int) -> AnyOperation:
    """Let the guest, in SMM, map a page to another gfn."""
    return write(_LEAF, gfn * PAGE_SIZE_BYTES | PLAIN, 8 * page, as_id=SMM)


_start = Area(
    prefix="start-in-smm-",
    tags=("start", "spaces"),
    source=f"{WALK}; mmu_alloc_shadow_roots, kvm_vcpu_gfn_to_memslot",
    needs=("smm",),
    survey="none",
)

SCENARIOS = (
    _start(
        "on-tables-of-its-own",
        "A vCPU in SMM uses page tables in slots of as_id 1, whatever as_id 0 has there.",
        *(*USUAL.lay(), *programs(), *_OTHER.lay()),
        *creates(_SMM_TABLES, _SMM_CODE),
        *map(_in_smm, (*accesses(), Start(_REAL_START))),
        USUAL.run(2),
        _run(2),
        *creates(_OTHER_TABLES, _OTHER_CODE),
        *(USUAL.run(2), _run(2), USUAL.run(3), _run(3)),
        *(_SMM_TABLES.delete(), _run(2), USUAL.run(2)),
        *(_SMM_TABLES.create(), _run(2)),
        *(_OTHER_TABLES.delete(), _run(2), USUAL.run(2)),
    ),
    _start(
        "on-the-same-tables",
        "The same page tables lead to the memory of the address space that a vCPU sees.",
        *(*_USED.lay(), *programs()),
        *creates(TABLES, CODE, _SMM_TABLES, replace(_SMM_CODE, hva=at("b"))),
        *(_USED.run(2), _run(2), _run(3), _USED.run(3)),
        CODE.delete(),
        *(_USED.run(3), _run(3), _run(2), _USED.run(2)),
        CODE.create(),
        *(_USED.run(2), _run(2)),
        _SMM_TABLES.move(0x200),
        *(_run(2), _USED.run(2), _in_smm(replace(_USED, gfn=0x200).run(2))),
        *(_SMM_TABLES.create(), _run(2)),
    ),
    _start(
        "after-the-guest-wrote-its-tables",
        "What a guest in SMM writes to its page tables takes effect, at the level of pages and "
        "above, though as_id 0 has other memory there.",
        *USUAL.lay(),
        *lowest_level(at("b"), _BACKWARD),
        *creates(_SMM_TABLES, _SMM_CODE, _SMM_LEAF, replace(TABLES, hva=at("b", 4))),
        *(read(USUAL.gfn + 2, as_id=SMM), _leads_to(_LEAF), _run(2)),
        *(_leads_to(_OTHER_LEAF), _run(2), _run(3)),
        *(_leads_to(_LEAF), _run(2), _run(3)),
        *(_mapped_to(2, GFNS[0]), _run(2), _run(3)),
        *(_mapped_to(2, GFNS[1]), _run(2)),
        source="account_shadowed; kvm_mmu_slot_gfn_write_protect; kvm_memslots_for_spte_role",
    ),
    _start(
        "with-logged-tables",
        "Accessed and dirty bits that are set in SMM, and what is stored there, are in the logs of "
        "as_id 1 alone.",
        *(*USUAL.lay(), *programs()),
        *(slot.change(LOG_DIRTY_PAGES) for slot in (TABLES, CODE, _SMM_TABLES, _SMM_CODE)),
        _run(3),
        *(slot.log() for slot in (_SMM_TABLES, TABLES)),
        _in_smm(USUAL.access(STORING, DATA, VALUE)),
        *(slot.log() for slot in (_SMM_TABLES, _SMM_CODE, TABLES, CODE)),
        _in_smm(USUAL.access(LOADING, DATA)),
        *(slot.log() for slot in (_SMM_CODE, CODE)),
        source="api.rst 4.8; update_accessed_dirty_bits; Intel SDM vol. 3, 4.8",
    ),
)
"""All scenarios of vCPUs that start in SMM."""
