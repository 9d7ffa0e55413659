"""System management interrupts: a vCPU saves its state to as_id 1, and goes on in as_id 0."""

from dataclasses import replace

import msgspec

from vmm.catalogue._area import Area
from vmm.catalogue._build import A, B, Slot, at, creates, read
from vmm.scenario.content import STUB_OFFSET
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    SMBASE,
    SMM,
    Inspect,
    Mapping,
    Place,
    Start,
)
from vmm.scenario.programs import SMM_HANDLER, SMM_RETURN, smm_store, writes

_SMM = SMM << 16
_HANDLER_GFN = SMM_HANDLER // PAGE_SIZE_BYTES
_SOURCE = "api.rst 4.96 KVM_SMI; enter_smm, emulator_leave_smm"

_SMRAM = Slot(_SMM | 1, _HANDLER_GFN, at("a"), 8, LOG_DIRTY_PAGES)
"""The pages of as_id 1 from the handler on; a vCPU's state is in the last one."""

_UNDER = Slot(1, _HANDLER_GFN, at("b"), 8, LOG_DIRTY_PAGES)
"""The same gpas in as_id 0."""

_OTHER = replace(_UNDER, slot=_SMM | 2)
_STATE = Slot(_SMM | 2, _HANDLER_GFN + 7, at("b", 7), 1, LOG_DIRTY_PAGES)
_CODE = Slot(2, 0x100, at("c"), 4)
_C = Mapping("c", 8)
_RUN = Start(_CODE.gfn * PAGE_SIZE_BYTES + STUB_OFFSET, smi=True)

_HANDLER, _SMM_RETURNS_HERE = Slot(_SMM | 1, _HANDLER_GFN, at("a")), Place("a", 0x100)
_OVER = Slot(_SMM | 2, _HANDLER_GFN + 7, at("b", 6), 2, LOG_DIRTY_PAGES)
_BEFORE = replace(_OVER, pages=1)
_AFTER = Slot(_SMM | 3, _HANDLER_GFN + 8, at("c", 6), 1, LOG_DIRTY_PAGES)
_MOVED_RUN = msgspec.structs.replace(_RUN, smbase=SMBASE + _SMM_RETURNS_HERE.offset)
"""A vCPU's state is in two pages then, and its handler is further on in a page of its own."""

_WORD_GPA = 0x110040
_WORD_SLOT = Slot(_SMM | 3, 0x110, at("c", 4), 1, LOG_DIRTY_PAGES)
_WORD_UNDER = Slot(3, 0x110, at("c", 5), 1, LOG_DIRTY_PAGES)
"""What has the handler's word in as_id 1, and the same gpa in as_id 0."""


_smi = Area(
    prefix="smi-",
    tags=("spaces", "smi"),
    source=_SOURCE,
    needs=("smm",),
    mappings=(A, B, _C),
    survey="none",
)


_HANDLERS = (*writes(at("a"), SMM_RETURN), *writes(at("b"), SMM_RETURN))

SCENARIOS = (
    _smi(
        "saves-the-state-in-its-own-space",
        "A vCPU that gets an SMI writes its state to as_id 1 alone, and returns to its code.",
        *_HANDLERS,
        *creates(_SMRAM, _UNDER, _CODE),
        _RUN,
        Inspect(),
        _SMRAM.log(),
        _UNDER.log(),
        read(0x101),
        msgspec.structs.replace(_RUN, address=_RUN.address + PAGE_SIZE_BYTES, smi=False),
        _RUN,
        Inspect(),
        _SMRAM.log(),
        _UNDER.log(),
    ),
    _smi(
        "after-its-slot-moved",
        "The state is saved where the slot of as_id 1 is now, and the handler is run there.",
        *_HANDLERS,
        *creates(_SMRAM, _CODE),
        _RUN,
        Inspect(),
        _SMRAM.move(_HANDLER_GFN + 0x100),
        _OTHER.create(),
        _RUN,
        Inspect(),
        _OTHER.log(),
        _SMRAM.log(),
        _OTHER.delete(),
        _SMRAM.create(),
        _RUN,
        Inspect(),
        _SMRAM.log(),
    ),
    _smi(
        "in-two-slots",
        "The handler and the state may lie in slots of their own, between which there is none.",
        *_HANDLERS,
        *creates(Slot(_SMM | 1, _HANDLER_GFN, at("a")), _STATE, _CODE),
        _RUN,
        Inspect(),
        _STATE.log(),
        read(0x101),
    ),
    _smi(
        "saves-the-state-over-the-end-of-a-page",
        "A state that SMBASE places over the end of a page is saved to, and restored from, both "
        "pages, whether they are of one slot or of two, and a handler is where SMBASE says.",
        *(*writes(at("a"), SMM_RETURN), *writes(_SMM_RETURNS_HERE, SMM_RETURN)),
        *creates(_HANDLER, _OVER, _CODE),
        *(_MOVED_RUN, Inspect(), _OVER.log(), _RUN, Inspect(), _OVER.log()),
        *(_OVER.delete(), *creates(_AFTER, _BEFORE)),
        *(_MOVED_RUN, Inspect(), _BEFORE.log(), _AFTER.log()),
        *(read(0x101), msgspec.structs.replace(_RUN, smi=False)),
    ),
    _smi(
        "whose-handler-writes",
        "What the handler of an SMI is, and where it writes, be it a slot or a hole, is looked up "
        "in as_id 1.",
        *writes(at("a"), smm_store(_WORD_GPA, 0x5EED_0001)),
        *writes(at("b"), smm_store(_WORD_GPA, 0x0BAD_0002)),
        *creates(_SMRAM, _UNDER, _CODE),
        *(_RUN, _WORD_UNDER.create(), _RUN, Inspect(), _WORD_UNDER.log(), _WORD_UNDER.delete()),
        # A change of as_id 0 after one of as_id 1: Linux 5.10 keeps MMIO of SMM without it.
        *(_WORD_SLOT.create(), _WORD_UNDER.create(), _RUN),
        *(Inspect(), _WORD_UNDER.log(), _WORD_SLOT.log(), _WORD_UNDER.delete(), _RUN),
        *(Inspect(), _WORD_SLOT.log(), _WORD_SLOT.delete(), _RUN),
        read(0x101),
        source=f"{_SOURCE}; kvm_fetch_guest_virt, vcpu_match_mmio_gen",
    ),
)
