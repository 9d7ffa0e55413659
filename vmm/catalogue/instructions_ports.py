"""String instructions between a port and memory, which KVM emulates on any processor."""

from collections.abc import Iterator
from itertools import product

from vmm.catalogue import _places as places
from vmm.catalogue._build import Slot, at, creates
from vmm.catalogue._instructions import gpa_of, instruction_scenario
from vmm.scenario.instructions import INSTRUCTIONS, Mode
from vmm.scenario.operations import LOG_DIRTY_PAGES, Inspect, Instruction, Mapping

_BOTH: tuple[Mode, Mode] = ("real", "long")
_SOURCE = "em_in, em_out, pio_in_emulated; Intel SDM vol. 2, INS, OUTS"
_VALUE = 0x1122_3344
_COUNT = 5
_ONE, _MANY = ("ins", "outs"), ("rep-ins", "rep-outs")
_LOGGED = Slot(1, 0x100, at("memory"), 32, LOG_DIRTY_PAGES)
_SLOTS = creates(places.LOW, places.HIGH, places.RO)


def _each(*gpas: int, down: bool = True, modes: tuple[Mode, ...] = _BOTH) -> Iterator[Instruction]:
    """Yield every instruction in every width, upward and perhaps downward, at each place.

    Each instruction reads another value from the port.
    """
    value = _VALUE
    for mode, gpa in product(modes, gpas):
        for name in (*_ONE, *_MANY):
            for width in INSTRUCTIONS[name].widths(mode):
                for goes_down in (False, True) if name in _MANY and down else (False,):
                    value = value + 0x0101_0101 & 0xFFFF_FFFF
                    count = _COUNT if name in _MANY else 1
                    yield Instruction(
                        name, gpa, width, value, count=count, down=goes_down, mode=mode
                    )


def _over(*borders: int, down: bool = True) -> Iterator[Instruction]:
    return _each(
        *(border - 7 for border in borders), *(border - 1 for border in borders), down=down
    )


SCENARIOS = (
    instruction_scenario(
        "ports-and-memory",
        "ins writes what it reads from a port to a slot, and outs sends what a slot holds, across "
        "borders, too.",
        *creates(places.LOW, places.HIGH),
        *_each(gpa_of(0x100, 0x40), modes=("real",)),
        *_each(places.SLOT - 7, modes=("long",)),
        Inspect(),
        source=_SOURCE,
        tags=("string",),
    ),
    instruction_scenario(
        "ports-and-pages",
        "ins and outs reach both pages at a border, upward and downward.",
        *creates(places.LOW, places.HIGH),
        *_each(gpa_of(0x100, 0x40)),
        *_over(places.PAGE, places.SLOT),
        Inspect(),
        source=_SOURCE,
        tags=("string", "slow"),
    ),
    instruction_scenario(
        "ports-in-a-hole",
        "In a hole ins exits with what it reads from a port, and outs exits to read what it sends.",
        places.LOW.create(),
        *_each(places.HOLE + 0x40, down=False),
        *_over(places.SLOT, gpa_of(0x100), down=False),
        *(op for op in _over(places.SLOT) if op.down and op.name == "rep-outs"),
        Inspect(),
        source=_SOURCE,
        tags=("string", "mmio", "slow"),
    ),
    instruction_scenario(
        "ports-and-a-readonly-slot",
        "outs sends what a READONLY slot holds; ins exits there, and changes nothing.",
        *_SLOTS,
        *_each(gpa_of(0x103, 0x40), down=False),
        *_over(places.START, places.END, down=False),
        Inspect(),
        source=_SOURCE,
        tags=("string", "readonly", "slow"),
        needs=("readonly_mem",),
    ),
    instruction_scenario(
        "ports-are-logged",
        "All pages that ins writes are in the dirty log, but not those that outs only reads.",
        _LOGGED.create(),
        Instruction("ins", gpa_of(0x102, 0x40), 4, _VALUE),
        Instruction("outs", gpa_of(0x104, 0x40), 4),
        Instruction("rep-ins", gpa_of(0x106, 0xFF0), 4, _VALUE, count=1032),
        _LOGGED.log(),
        Instruction("rep-ins", gpa_of(0x10C, 0xFFA), 2, _VALUE, count=6, down=True),
        Instruction("rep-outs", gpa_of(0x110), 4, count=16),
        Instruction("ins", gpa_of(0x115) - 2, 4, _VALUE, mode="long"),
        _LOGGED.log(),
        source=f"{_SOURCE}; 910c57dfa4d1",
        tags=("string", "dirty"),
        mappings=(Mapping("memory", 32),),
    ),
    instruction_scenario(
        "ports-downward-in-a-hole",
        "A downward ins reads each element from the port once, even if the element exits.",
        places.LOW.create(),
        Instruction("rep-ins", places.HOLE + 0x40, 4, _VALUE, count=_COUNT, down=True),
        Instruction("rep-ins", places.SLOT - 6, 4, _VALUE, count=_COUNT, down=True),
        source=_SOURCE,
        tags=("string", "mmio"),
    ),
)
"""All scenarios of instructions between a port and memory."""
