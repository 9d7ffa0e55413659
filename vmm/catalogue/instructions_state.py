"""The x87 and vector state, saved to slots and restored from them."""

from vmm.catalogue import _places as places
from vmm.catalogue._build import Slot, at, creates
from vmm.catalogue._instructions import MANUALS, gpa_of, instruction_scenario
from vmm.scenario.instruction_effects import MXCSR_OFFSET, RESET_MXCSR
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    HostWrite,
    Inspect,
    Instruction,
    Mapping,
    Place,
)

_VALUE, _HIGHER = 0x5566_7788_99AA_BBCC, 0x1122_3344_DDEE_FF00
_XMM0 = 160
_SOURCE = f"{MANUALS}; em_fxsave"
_LOGGED = Slot(1, 0x100, at("memory"), 20, LOG_DIRTY_PAGES)


def _save(gpa: int) -> Instruction:
    return Instruction("fxsave64", gpa, 16, _VALUE, value_high=_HIGHER, mode="long")


def _restore(gpa: int) -> Instruction:
    return Instruction("fxrstor64", gpa, 16, mode="long")


def _save_low(gpa: int) -> Instruction:
    return Instruction("fxsave", gpa, 16)


def _valid(gfn: int, mapping: str, base: int, offset: int = 0) -> HostWrite:
    """Make the memory at a gpa a state that can be restored: MXCSR without reserved bits."""
    place = (gfn - base) * PAGE_SIZE_BYTES + offset + MXCSR_OFFSET
    return HostWrite(Place(mapping, place), RESET_MXCSR)


SCENARIOS = (
    instruction_scenario(
        "state-in-memory",
        "fxsave and fxrstor reach a slot's memory, across page and slot borders, too.",
        *creates(places.LOW, places.HIGH),
        _valid(0x102, "b", 0x102, 0x400),
        _restore(gpa_of(0x102, 0x400)),
        _valid(0x101, "a", 0x100, 0xF00),
        _restore(gpa_of(0x101, 0xF00)),
        _valid(0x100, "a", 0x100, 0xF00),
        _restore(gpa_of(0x100, 0xF00)),
        _save_low(gpa_of(0x100, 0x40)),
        _save_low(places.PAGE - 0x40),
        _save_low(places.SLOT - 0x10),
        Inspect(),
        _save(places.PAGE - 0x600),
        Instruction("load-vector", places.PAGE - 0x600 + _XMM0, 16, mode="long"),
        *(_save(places.PAGE - offset) for offset in (0x10, 0xB0, 0x1C0)),
        _save(places.SLOT - _XMM0),
        Inspect(),
        source=_SOURCE,
        tags=("state", "slow"),
    ),
    instruction_scenario(
        "state-is-logged",
        "Pages that the state is saved to are in the dirty log, but not those it is restored from.",
        _LOGGED.create(),
        _save_low(gpa_of(0x101, 0x40)),
        _save_low(gpa_of(0x104) - 0x20),
        _LOGGED.log(),
        _save(gpa_of(0x106, 0x40)),
        _save(gpa_of(0x109) - 0x1C0),
        _valid(0x10B, "memory", 0x100),
        _restore(gpa_of(0x10B)),
        _LOGGED.log(),
        _LOGGED.log(),
        source=_SOURCE,
        tags=("state", "dirty"),
        mappings=(Mapping("memory", 20),),
    ),
    instruction_scenario(
        "state-on-a-readonly-slot",
        "The state is restored from a READONLY slot; where it cannot be saved or restored, KVM "
        "reports that it cannot emulate the instruction.",
        *creates(places.HIGH, places.RO),
        _valid(0x103, "b", 0x102),
        _restore(places.START),
        _valid(0x103, "b", 0x102, 0xF80),
        _restore(gpa_of(0x103, 0xF80)),
        _save(gpa_of(0x103, 0x40)),
        _save(places.END - 0x200),
        _save(places.HOLE + 0x40),
        _save(places.HOLE + 0xF80),
        Inspect(),
        source=_SOURCE,
        tags=("state", "readonly", "slow"),
        needs=("readonly_mem",),
    ),
    instruction_scenario(
        "fxsave-in-a-hole",
        "fxsave to a hole exits, or KVM reports that it cannot emulate the instruction.",
        _save_low(places.HOLE + 0x40),
        source=_SOURCE,
        tags=("state", "slow"),
    ),
)
"""All scenarios about the x87 and vector state."""
