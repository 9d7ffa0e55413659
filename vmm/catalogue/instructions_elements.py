"""Single elements, comparisons and stack operands in memory: on slots and in holes."""

from collections.abc import Iterator
from itertools import product

from vmm.catalogue import _places as places
from vmm.catalogue._build import A, B, Slot, at, creates
from vmm.catalogue._instructions import MANUALS, gpa_of, instruction_scenario
from vmm.scenario.instructions import INSTRUCTIONS, Mode
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    Inspect,
    Instruction,
    Mapping,
)

_BOTH: tuple[Mode, Mode] = ("long", "real")
_VALUE, _OTHER = 0x5566_7788_99AA_BBCC, 0x1122_3344_DDEE_FF00
_MASK = (1 << 64) - 1

_ONE_PLACE = ("load", "store", "lods", "stos", "scas", "cmp")
_TWO_PLACES = ("movs", "cmps", "push-memory", "pop-memory")
_LOGGED = Slot(1, 0x100, at("memory"), 64, LOG_DIRTY_PAGES)


def _elements(gpa: int, *modes: Mode) -> Iterator[Instruction]:
    """Yield every instruction on one element, in every width, each at its own place."""
    for mode, name in product(modes, _ONE_PLACE):
        for width in INSTRUCTIONS[name].widths(mode):
            yield Instruction(name, gpa, width, _VALUE, _OTHER, mode=mode)
            gpa += 16


def _over(border: int, *modes: Mode) -> Iterator[Instruction]:
    """Yield the same across a border, in each width above a byte, each with its own value."""
    value = 0
    for mode, name in product(modes, _ONE_PLACE):
        for width in INSTRUCTIONS[name].widths(mode)[1:]:
            value += 0x0101_0101_0101_0101
            yield Instruction(name, border - 1, width, value, ~value & _MASK, mode=mode)


def _copies(gpa: int, source: int, *modes: Mode) -> Iterator[Instruction]:
    """Yield every instruction on two elements, in every width, each after a store to the source."""
    value = 0
    for mode, name in product(modes, _TWO_PLACES):
        for width in INSTRUCTIONS[name].widths(mode):
            value += 0x0101_0101_0101_0101
            yield Instruction("store", source, 4, value & 0xFFFF_FFFF)
            yield Instruction(name, gpa, width, source=source, mode=mode)


def _wide_copies(places: tuple[int, ...], *modes: Mode) -> Iterator[Instruction]:
    """Yield the widest of these from each place to each other."""
    for gpa, source in product(places, places):
        for mode, name in product(modes if gpa != source else (), _TWO_PLACES):
            yield Instruction(
                name, gpa, INSTRUCTIONS[name].widths(mode)[-1], source=source, mode=mode
            )


def _popa(*gpas: int) -> Iterator[Instruction]:
    for gpa in gpas:
        for width in INSTRUCTIONS["popa"].real:
            yield Instruction("popa", gpa, width, _VALUE, 0x1111, 0x2222, 0x3333)


_SLOTS = creates(places.LOW, places.HIGH, places.RO)

SCENARIOS = (
    instruction_scenario(
        "elements-in-memory",
        "Instructions on one element reach a slot's memory, across page and slot borders, too.",
        *creates(places.LOW, places.HIGH),
        *_elements(gpa_of(0x100, 0x40), *_BOTH),
        *_over(places.PAGE, *_BOTH),
        *_over(places.SLOT, *_BOTH),
        Inspect(),
        tags=("string", "slow"),
    ),
    instruction_scenario(
        "elements-in-a-hole",
        "An element in a hole exits, whether it is loaded, compared or stored.",
        places.LOW.create(),
        *_elements(places.HOLE + 0x40, *_BOTH),
        *_over(gpa_of(0x100), *_BOTH),
        *_over(places.SLOT, *_BOTH),
        Inspect(),
        tags=("string", "mmio", "slow"),
    ),
    instruction_scenario(
        "elements-on-a-readonly-slot",
        "Elements in a READONLY slot are loaded and compared as memory; a store exits.",
        *_SLOTS,
        *_elements(gpa_of(0x103, 0x40), *_BOTH),
        *_over(places.START, *_BOTH),
        *_over(gpa_of(0x104), *_BOTH),
        *_over(places.END, *_BOTH),
        Inspect(),
        tags=("string", "readonly", "slow"),
        needs=("readonly_mem",),
    ),
    instruction_scenario(
        "elements-copied-between-slots",
        "One element is copied from slot to slot, by a string instruction or over the stack.",
        *creates(places.LOW, places.HIGH),
        *_copies(gpa_of(0x100, 0x40), gpa_of(0x102, 0x80), *_BOTH),
        *_copies(places.PAGE - 1, gpa_of(0x102, 0x81), *_BOTH),
        *_copies(gpa_of(0x102, 0x40), places.PAGE - 1, *_BOTH),
        *_copies(places.SLOT - 1, gpa_of(0x100, 0x80), *_BOTH),
        *_copies(gpa_of(0x100, 0xC0), places.SLOT - 1, *_BOTH),
        Inspect(),
        tags=("string", "stack", "straddle", "slow"),
    ),
    instruction_scenario(
        "elements-copied-to-and-from-anywhere",
        "When one element is copied between slots, READONLY slots, holes and their borders, each "
        "part outside exits, the read before the write.",
        *_SLOTS,
        *_wide_copies(
            (
                gpa_of(0x100, 0x40),
                gpa_of(0x103, 0x40),
                places.HOLE + 0x40,
                places.HOLE + 0x80,
                places.START - 1,
                gpa_of(0x104) - 1,
                places.END - 1,
                gpa_of(0x100) - 1,
            ),
            *_BOTH,
        ),
        Inspect(),
        tags=("string", "stack", "straddle", "readonly", "slow"),
        needs=("readonly_mem",),
    ),
    instruction_scenario(
        "elements-are-logged",
        "Each page that an element is stored to, or copied, pushed or popped to, is in the dirty "
        "log, and none that is only read or compared.",
        _LOGGED.create(),
        *(
            Instruction(name, gpa_of(0x100 + page, 0x40), 4, _VALUE, _VALUE)
            for page, name in enumerate(("lods", "scas", "cmp", "stos"), 1)
        ),
        *(
            Instruction(name, gpa_of(0x110 + 2 * page, 0x40), 4, source=gpa_of(0x120 + 2 * page))
            for page, name in enumerate(_TWO_PLACES)
        ),
        Instruction("popa", gpa_of(0x130), 4),
        _LOGGED.log(),
        Instruction("stos", gpa_of(0x105) - 2, 4),
        Instruction("push-memory", gpa_of(0x109) - 2, 4, source=gpa_of(0x120)),
        _LOGGED.log(),
        _LOGGED.log(),
        tags=("string", "stack", "dirty"),
        mappings=(Mapping("memory", 64),),
    ),
    instruction_scenario(
        "popa-in-memory",
        "popa reads from a slot, from a READONLY one, and across their borders.",
        *_SLOTS,
        *_popa(
            gpa_of(0x100, 0x40),
            places.PAGE - 6,
            places.SLOT - 6,
            places.START - 6,
            gpa_of(0x103, 0x40),
        ),
        tags=("stack", "readonly", "slow"),
        needs=("readonly_mem",),
    ),
    instruction_scenario(
        "popa-in-a-hole",
        "Each of the seven registers that popa pops in a hole exits; SP is skipped.",
        *_popa(places.HOLE + 0x40),
        source=f"{MANUALS}; em_popa",
        tags=("stack", "mmio"),
        mappings=(A, B),
    ),
    instruction_scenario(
        "popa-from-a-slot-into-a-hole",
        "If popa reads across the end of a slot, registers inside it are read from memory.",
        places.LOW.create(),
        *_popa(places.SLOT - 6),
        source=f"{MANUALS}; em_popa",
        tags=("stack", "straddle", "slow"),
    ),
)
"""All scenarios of one element, or of a stack operand in memory."""
