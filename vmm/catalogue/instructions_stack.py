"""Instructions on the stack, on strings and on descriptor tables, on slots and in holes."""

from collections.abc import Iterator
from itertools import product

import msgspec

from vmm.catalogue._build import A, B, Slot, at, creates
from vmm.catalogue._instructions import MANUALS, gpa_of, instruction_scenario
from vmm.scenario.instructions import CODE_OFFSET, INSTRUCTIONS, Mode
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    READONLY,
    AnyOperation,
    HostWrite,
    Instruction,
    Mapping,
    Place,
    Scenario,
)

_LOW = Slot(1, 0x100, at("a"))
_HIGH = Slot(2, 0x101, at("b"))
_RO = Slot(3, 0x102, at("b", 1), 2, READONLY)
_BORDER, _START, _END = gpa_of(0x101), gpa_of(0x102), gpa_of(0x104)
_STACK = ("push", "pushf", "pop", "call", "enter", "leave")
_TABLES = ("sgdt", "sidt")
_EMULATOR = "arch/x86/kvm/emulate.c"
_BOTH: tuple[Mode, Mode] = ("real", "long")
_VALUE = 0x5566_7788_99AA_BBCC
_FAR = Slot(4, 0x110, at("a", 1), 3)
_LOGGED = Slot(1, 0x100, at("memory"), 20, LOG_DIRTY_PAGES)


def _stack(gpa: int, *modes: Mode, step: int = 0) -> Iterator[Instruction]:
    """Yield every stack instruction in every width, each ``step`` bytes after the one before.

    enter with a 16-bit operand is left out, see `_KNOWN`.
    """
    for mode in modes:
        for name in _STACK:
            for width in INSTRUCTIONS[name].widths(mode):
                if (name, width) != ("enter", 2):
                    at_gpa = gpa if step else gpa - width // 2
                    yield Instruction(name, at_gpa, width, _VALUE, value_high=7, mode=mode)
                    gpa += step


def _returns(*gpas: int, place: Place | None = None, keeps: bool = False) -> Iterator[AnyOperation]:
    """Yield a return in each mode and width, after a write of its address.

    The host writes it to ``place``; if that is None, the guest does, unless ``keeps`` says that
    the address of an earlier return is still there.
    """
    for gpa, mode in product(gpas, _BOTH):
        for width in INSTRUCTIONS["ret"].widths(mode):
            op = Instruction("ret", gpa, width, mode=mode)
            address = CODE_OFFSET + len(INSTRUCTIONS["ret"].code(op))
            if place is not None:
                yield HostWrite(place, address)
                yield HostWrite(Place(place.mapping, place.offset + 4), 0)
            elif not keeps:
                yield Instruction("store", gpa, width, address, mode=mode)
            if not keeps or len(INSTRUCTIONS["ret"].code(op)) == 1:
                yield op


def _tables(gpa: int, step: int = 16) -> Iterator[Instruction]:
    for mode in _BOTH:
        for name in _TABLES:
            (width,) = INSTRUCTIONS[name].widths(mode)
            yield Instruction(name, gpa, width, 0x1234_5678, 0xABCD, mode=mode)
            gpa += step


def _copies(gpa: int, source: int, count: int, *modes: Mode) -> Iterator[Instruction]:
    """Yield copies of elements of every width, upward and downward."""
    for mode in modes:
        for width in INSTRUCTIONS["rep-movs"].widths(mode):
            yield Instruction("movs", gpa, width, source=source, mode=mode)
            for down in (False, True):
                yield Instruction(
                    "rep-movs", gpa, width, source=source, count=count, down=down, mode=mode
                )


def _strings(gpa: int, count: int, *modes: Mode) -> Iterator[Instruction]:
    """Yield instructions that fill and search elements of every width, upward and downward."""
    for mode in modes:
        for width in INSTRUCTIONS["rep-stos"].widths(mode):
            for down in (True, False):
                for name in ("repne-scas", "rep-stos", "repne-scas"):
                    yield Instruction(
                        name, gpa, width, compare=_VALUE, count=count, down=down, mode=mode
                    )


def _comparisons(*places: int) -> Iterator[Instruction]:
    """Yield comparisons of elements at each place, before and after they were copied from it."""
    source = gpa_of(0x110, 0x80)
    for place, mode in product(places, _BOTH):
        for width in INSTRUCTIONS["repe-cmps"].widths(mode):
            compare = Instruction("repe-cmps", place, width, source=source, count=9, mode=mode)
            yield compare
            yield Instruction("rep-movs", source, width, source=place, count=9, mode=mode)
            yield compare
            yield msgspec.structs.replace(compare, down=True)


_STACKS = (
    instruction_scenario(
        "stack-in-memory",
        "push writes to a slot's memory, and pop reads from it.",
        _LOW.create(),
        *_stack(gpa_of(0x100, 0x40), *_BOTH, step=16),
        Instruction("pusha", gpa_of(0x100, 0x400), 2, _VALUE, 0x1111, 0x2222, 0x3333),
        Instruction("pusha", gpa_of(0x100, 0x480), 4, _VALUE, 0x1111, 0x2222, 0x3333),
        tags=("stack",),
    ),
    instruction_scenario(
        "stack-over-two-slots",
        "A stack continues from a slot into the one below, and from page to page.",
        *creates(_LOW, Slot(2, 0x101, at("b"), 2)),
        *_stack(_BORDER, *_BOTH),
        *_stack(_START, *_BOTH),
        Instruction("pusha", _START - 15, 4, _VALUE, 0x1111, 0x2222, 0x3333),
        Instruction("pusha", _BORDER - 15, 4, _VALUE, 0x1111, 0x2222, 0x3333),
        tags=("stack", "straddle"),
    ),
    instruction_scenario(
        "stack-in-a-hole",
        "In a hole push exits with the value, and pop with a read.",
        *_stack(gpa_of(0x100, 0x40), *_BOTH, step=16),
        tags=("stack", "mmio"),
    ),
    instruction_scenario(
        "stack-from-a-slot-into-a-hole",
        "If a value is pushed across the end of a slot, the part outside exits.",
        *creates(_LOW, Slot(5, 0x102, at("b"))),
        *_stack(_BORDER, *_BOTH),
        *_stack(_START, *_BOTH),
        tags=("stack", "straddle"),
    ),
    instruction_scenario(
        "stack-on-a-readonly-slot",
        "push onto a READONLY slot exits, and pop does not read the pushed value there.",
        *creates(_HIGH, _RO),
        *_stack(gpa_of(0x102, 0x40), *_BOTH, step=16),
        *_stack(_START, *_BOTH),
        *_stack(_END, *_BOTH),
        tags=("stack", "readonly"),
        needs=("readonly_mem",),
    ),
    instruction_scenario(
        "stack-is-logged",
        "The pages that push writes are in the dirty log, and no others.",
        _LOGGED.create(),
        *_stack(gpa_of(_LOGGED.gfn + 1, 0x80), "real", step=0x1000),
        Instruction("pusha", gpa_of(_LOGGED.gfn + 13) - 8, 4, _VALUE),
        _LOGGED.log(),
        Instruction("pop", gpa_of(_LOGGED.gfn + 17), 4),
        _LOGGED.log(),
        tags=("stack", "dirty"),
        mappings=(Mapping("memory", 20),),
    ),
    instruction_scenario(
        "descriptor-tables-in-memory",
        "sgdt and sidt store limit and base in a slot's memory, across page and slot borders, too.",
        *creates(Slot(1, 0x100, at("a"), 2), Slot(2, 0x102, at("b"))),
        *_tables(gpa_of(0x100, 0x40)),
        *_tables(_BORDER - 5, step=0),
        *_tables(_START - 3, step=0),
        tags=("stack",),
    ),
    instruction_scenario(
        "descriptor-tables-are-logged",
        "A page that sgdt or sidt stores to is in the dirty log.",
        _LOGGED.create(),
        *_tables(gpa_of(_LOGGED.gfn + 1, 0x80), step=0x2000),
        _LOGGED.log(),
        _LOGGED.log(),
        tags=("stack", "dirty"),
        mappings=(Mapping("memory", 20),),
    ),
)

_RETURNS = (
    instruction_scenario(
        "return-from-memory",
        "ret returns to the address on the stack, in a slot, across two, and in a READONLY one.",
        *creates(_LOW, _HIGH, _RO, _FAR),
        *_returns(gpa_of(0x100, 0x40), _BORDER - 1, gpa_of(0x111) - 1),
        *_returns(gpa_of(0x102, 0x40), place=Place("b", 0x1040)),
        tags=("stack", "readonly"),
        needs=("readonly_mem",),
    ),
    instruction_scenario(
        "return-where-slots-change",
        "ret reads the stack where its slot has moved, and where another slot took its place.",
        _LOW.create(),
        *_returns(gpa_of(0x100, 0x40)),
        _LOW.move(0x101),
        *_returns(gpa_of(0x101, 0x40), keeps=True),
        _LOW.delete(),
        Slot(1, 0x101, at("b")).create(),
        *_returns(gpa_of(0x101, 0x40)),
        tags=("stack", "slow"),
    ),
)

_STRINGS = (
    instruction_scenario(
        "strings-between-slots",
        "Elements are copied from one slot to another, upward and downward.",
        *creates(_LOW, _HIGH, _FAR),
        *_copies(gpa_of(0x100, 0x80), gpa_of(0x110, 0x80), 9, *_BOTH),
        *_copies(gpa_of(0x111, 0xFE0), gpa_of(0x100, 0x81), 9, *_BOTH),
        tags=("string",),
    ),
    instruction_scenario(
        "strings-over-borders-of-slots",
        "A string instruction continues in the next slot, upward and downward.",
        *creates(_LOW, _HIGH, _FAR),
        *_copies(_BORDER - 21, gpa_of(0x111) - 17, 11, *_BOTH),
        *_strings(_BORDER - 21, 11, *_BOTH),
        tags=("string", "straddle"),
    ),
    instruction_scenario(
        "strings-over-many-slots",
        "One instruction copies across several slots and pages, in both directions.",
        *creates(_LOW, _HIGH, Slot(3, 0x102, at("b", 1)), _FAR),
        Instruction("rep-movs", gpa_of(0x100, 0xF00), 4, source=gpa_of(0x110, 0xEFE), count=1100),
        Instruction(
            "rep-movs", gpa_of(0x100, 0xEFE), 4, source=gpa_of(0x110, 0xF00), count=1100, down=True
        ),
        Instruction("rep-stos", gpa_of(0x100, 0xEFF), 4, compare=_VALUE, count=1100, down=True),
        Instruction("repne-scas", gpa_of(0x100, 0xEFF), 4, compare=1, count=1100),
        Instruction("repe-cmps", gpa_of(0x100, 0xC00), 4, source=gpa_of(0x101), count=512),
        tags=("string",),
    ),
    instruction_scenario(
        "strings-that-overlap",
        "A copy onto overlapping memory reads elements that it has itself written before.",
        Slot(1, 0x100, at("a"), 2).create(),
        *(
            Instruction(
                "rep-movs",
                _BORDER - 0x30 + way,
                width,
                source=_BORDER - 0x30,
                count=24,
                down=down,
            )
            for width in INSTRUCTIONS["rep-movs"].widths("real")
            for way in (1, 3, -2)
            for down in (False, True)
        ),
        tags=("string", "slow"),
    ),
    instruction_scenario(
        "strings-between-a-slot-and-a-hole",
        "A copy from a hole, or into one, exits for each element.",
        _LOW.create(),
        *_copies(gpa_of(0x100, 0x80), gpa_of(0x110, 0x80), 3, *_BOTH),
        *_copies(gpa_of(0x110, 0x80), gpa_of(0x100, 0x181), 3, *_BOTH),
        *_copies(gpa_of(0x110, 0x80), gpa_of(0x111, 0x81), 3, *_BOTH),
        Instruction("repe-cmps", gpa_of(0x110, 0x80), 4, source=gpa_of(0x100, 0x80), count=3),
        tags=("string", "mmio"),
    ),
    instruction_scenario(
        "strings-from-a-slot-into-a-hole",
        "Elements outside the slot exit, those inside are in memory, and one across the end is "
        "split.",
        _LOW.create(),
        *_copies(_BORDER - 7, gpa_of(0x100, 0x80), 4, *_BOTH),
        *_copies(gpa_of(0x100) - 7, gpa_of(0x100, 0x80), 4, *_BOTH),
        *_strings(_BORDER - 7, 4, *_BOTH),
        tags=("string", "straddle"),
    ),
    instruction_scenario(
        "strings-over-readonly-borders",
        "A string instruction reads a READONLY slot as memory, and exits when it writes there.",
        *creates(_HIGH, _RO, _FAR),
        *_copies(_START - 7, gpa_of(0x110, 0x80), 4, "real"),
        *_copies(_END - 7, gpa_of(0x110, 0x80), 4, "real"),
        *_copies(gpa_of(0x110, 0x80), _START - 7, 4, "real"),
        *_strings(_START - 7, 4, "real"),
        tags=("string", "readonly"),
        needs=("readonly_mem",),
    ),
    instruction_scenario(
        "strings-of-64-bits-over-readonly-borders",
        "In 64-bit mode, too, a READONLY slot is read as memory, and exits when it is written.",
        *creates(_HIGH, _RO, _FAR),
        *_copies(_START - 7, gpa_of(0x110, 0x80), 4, "long"),
        *_copies(_END - 7, gpa_of(0x110, 0x80), 4, "long"),
        *_copies(gpa_of(0x110, 0x80), _START - 7, 4, "long"),
        *_strings(_START - 7, 4, "long"),
        *_strings(_END - 7, 4, *_BOTH),
        *_strings(gpa_of(0x102, 0x80), 4, "long"),
        *_strings(gpa_of(0x120, 0x80), 4, *_BOTH),
        *_strings(gpa_of(0x111) - 7, 4, *_BOTH),
        tags=("string", "readonly", "slow"),
        needs=("readonly_mem",),
    ),
    instruction_scenario(
        "strings-that-are-compared",
        "Elements are compared anywhere: across borders of slots, READONLY slots and holes.",
        *creates(_LOW, _HIGH, _RO, _FAR),
        *_comparisons(
            gpa_of(0x100, 0x40),
            _BORDER - 17,
            gpa_of(0x102, 0x40),
            gpa_of(0x103) - 17,
            _START - 17,
            _END - 17,
            gpa_of(0x112) - 17,
            gpa_of(0x113) - 17,
            gpa_of(0x120, 0x40),
        ),
        tags=("string", "readonly", "slow"),
        needs=("readonly_mem",),
    ),
    instruction_scenario(
        "strings-are-logged",
        "The pages that elements were copied to are in the dirty log, but not those only read.",
        _LOGGED.create(),
        Instruction(
            "rep-movs",
            gpa_of(_LOGGED.gfn + 2, 0xFFC),
            4,
            source=gpa_of(_LOGGED.gfn + 8),
            count=1026,
        ),
        _LOGGED.log(),
        Instruction(
            "rep-movs",
            gpa_of(_LOGGED.gfn + 5, 0xFFE),
            2,
            source=gpa_of(_LOGGED.gfn + 8),
            count=3,
            down=True,
        ),
        Instruction("repne-scas", gpa_of(_LOGGED.gfn + 12), 4, compare=1, count=8),
        _LOGGED.log(),
        Instruction("rep-stos", gpa_of(_LOGGED.gfn + 15, 0xFF0), 1, count=17, down=True),
        _LOGGED.log(),
        tags=("string", "dirty"),
        mappings=(Mapping("memory", 20),),
    ),
)


def _known(name: str, why: str, *operations: Instruction, slow: bool = False) -> Scenario:
    return instruction_scenario(
        name,
        why,
        *creates(_LOW, Slot(3, 0x102, at("b", 1), 2, READONLY)),
        *operations,
        source=f"{MANUALS}; {_EMULATOR}",
        tags=("stack", "slow") if slow else ("stack",),
        needs=("readonly_mem",),
        mappings=(A, B),
    )


_KNOWN = (
    _known(
        "pusha-in-a-hole",
        "Each of the eight registers that pusha pushes in a hole exits.",
        Instruction("pusha", gpa_of(0x110, 0x40), 4, _VALUE, 0x1111, 0x2222, 0x3333),
    ),
    _known(
        "pusha-on-a-readonly-slot",
        "Each of the eight registers that pusha pushes onto a READONLY slot exits.",
        Instruction("pusha", gpa_of(0x102, 0x40), 2, _VALUE, 0x1111, 0x2222, 0x3333),
    ),
    _known(
        "pusha-from-a-slot-into-a-hole",
        "If pusha pushes across the border of a slot, registers outside it exit one by one.",
        Instruction("pusha", _BORDER - 14, 4, _VALUE, 0x1111, 0x2222, 0x3333),
    ),
    _known(
        "enter-of-16-bits-in-a-hole",
        "enter pushes as many bytes as its operand size says, however wide the stack pointer is.",
        Instruction("enter", gpa_of(0x110, 0x40), 2, value_high=0x7788),
    ),
    _known(
        "enter-of-16-bits-in-memory",
        "enter pushes as many bytes as its operand size says, however wide the stack pointer is.",
        Instruction("enter", gpa_of(0x100, 0x40), 2, value_high=0x7788),
    ),
    _known(
        "sgdt-in-a-hole",
        "What sgdt stores in a hole exits.",
        Instruction("sgdt", gpa_of(0x110, 0x40), 4, 0x1234_5678, 0xABCD),
        slow=True,
    ),
    _known(
        "sidt-on-a-readonly-slot",
        "What sidt stores to a READONLY slot exits.",
        Instruction("sidt", gpa_of(0x102, 0x40), 4, 0x1234_5678, 0xABCD),
        slow=True,
    ),
)

SCENARIOS = (*_STACKS, *_RETURNS, *_STRINGS, *_KNOWN)
"""All scenarios about the stack, strings and descriptor tables."""
