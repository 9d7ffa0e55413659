"""A guest's interrupt tables, handlers and stacks in slots that are changed."""

from collections.abc import Iterator

import msgspec

from vmm.catalogue._area import Area
from vmm.catalogue._build import WITHOUT_ZAP_ALL, Slot, at
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    Place,
    Scenario,
)
from vmm.scenario.pagetables import (
    PROGRAM_OFFSET,
    USED,
    Tables,
    long_table,
    real_interrupt,
    real_table,
)
from vmm.scenario.programs import INTERRUPT, writes

_SOURCE = "emulate_int_real; Intel SDM vol. 3, 6.12, 20.1.4"

# All gfns are below 1 MiB: a real-mode handler is at a segment of 16 bits.
_TABLE = Slot(1, 0x10, at("a"))
_OTHER_TABLE = Slot(1, 0x10, at("b"))
_CODE = Slot(2, 0x20, at("a", 1))
_HANDLERS = Slot(3, 0x30, at("a", 2), pages=2)
_STACK = Slot(4, 0x8, at("a", 4))
_INTERRUPT = real_interrupt(0x20, 0x10, 0x8)

_LONG = Tables("b", 0x100, (0x10, 0x20, 0x30, 0x31, 0x8), page=4, bits=USED)
_LONG_TABLES = Slot(5, 0x100, at("b", 4), pages=4)
_LONG_INTERRUPT = _LONG.interrupt(1, 0, 4)


def _program() -> Iterator[AnyOperation]:
    return writes(Place("a", PAGE_SIZE_BYTES + PROGRAM_OFFSET), INTERRUPT)


_interrupts = Area(prefix="interrupt-", tags=("start",), source=_SOURCE, survey="none")


_REAL = (
    *real_table(at("a"), 0x30),
    *real_table(at("b"), 0x31),
    *_program(),
    _TABLE.create(),
    _CODE.create(),
    _HANDLERS.create(),
)
_IN_64_BITS = (
    *long_table(at("a"), 2),
    *long_table(at("b"), 3),
    *_program(),
    *_LONG.lay(),
    _LONG_TABLES.create(),
    _TABLE.create(),
    _CODE.create(),
    _HANDLERS.create(),
)


def _changes(interrupt: AnyOperation) -> tuple[AnyOperation, ...]:
    """Change each slot that an interrupt uses, and raise the interrupt after each change."""
    return (
        _STACK.change(LOG_DIRTY_PAGES),
        interrupt,
        _STACK.log(),
        _TABLE.delete(),
        _OTHER_TABLE.create(),
        interrupt,
        _OTHER_TABLE.move(0x50),
        Slot(6, 0x10, at("a")).create(),
        interrupt,
        _STACK.log(),
        _HANDLERS.delete(),
        Slot(3, 0x30, at("b", 2), pages=2).create(),
        interrupt,
        _STACK.delete(),
        Slot(4, 0x8, at("b", 1), flags=LOG_DIRTY_PAGES).create(),
        interrupt,
        _STACK.log(),
    )


def _readonly(interrupt: AnyOperation) -> tuple[AnyOperation, ...]:
    """Make each slot READONLY that an interrupt only reads, and raise the interrupt."""
    return (
        _STACK.create(),
        interrupt,
        _TABLE.delete(),
        _TABLE.change(READONLY),
        interrupt,
        _HANDLERS.delete(),
        _HANDLERS.change(READONLY),
        interrupt,
        _TABLE.delete(),
        Slot(1, 0x10, at("b"), flags=READONLY).create(),
        interrupt,
    )


_BOTH = (
    _interrupts(
        "tables-that-change",
        "An interrupt uses the current table, handler and stack after each change of their slots.",
        *_REAL,
        *_changes(_INTERRUPT),
    ),
    _interrupts(
        "tables-that-change-in-64-bits",
        "In 64-bit mode an interrupt uses the current gates, descriptors and stack, through page "
        "tables.",
        *_IN_64_BITS,
        *_changes(_LONG_INTERRUPT),
    ),
    _interrupts(
        "tables-that-are-readonly",
        "Interrupt tables and handlers in READONLY slots are read.",
        *_REAL,
        *_readonly(_INTERRUPT),
        needs=("readonly_mem",),
    ),
    _interrupts(
        "tables-that-are-readonly-in-64-bits",
        "In 64-bit mode interrupt tables and handlers in READONLY slots are read, through page "
        "tables.",
        *_IN_64_BITS,
        *_readonly(_LONG_INTERRUPT),
        needs=("readonly_mem",),
    ),
)

_OUTSIDE = (
    _interrupts(
        "onto-a-stack-in-a-hole",
        "Each of the three words that an interrupt pushes in a hole exits.",
        *_REAL,
        _INTERRUPT,
        _STACK.create(),
        _INTERRUPT,
    ),
    _interrupts(
        "onto-a-readonly-stack",
        "Each of the three words that an interrupt pushes onto a READONLY slot exits.",
        *_REAL,
        _STACK.change(READONLY),
        _INTERRUPT,
        needs=("readonly_mem",),
    ),
    _interrupts(
        "through-a-table-in-a-hole",
        "An interrupt whose table is in a hole stops the vCPU.",
        *_REAL,
        _STACK.create(),
        _TABLE.delete(),
        _INTERRUPT,
    ),
    _interrupts(
        "outside-memory-in-64-bits",
        "In 64-bit mode an interrupt whose stack or table is in a hole, or whose stack is in a "
        "READONLY slot, stops the vCPU; with all of them in memory it is delivered.",
        *_IN_64_BITS,
        _LONG_INTERRUPT,
        _STACK.change(READONLY),
        _LONG_INTERRUPT,
        _STACK.delete(),
        _STACK.create(),
        _LONG_INTERRUPT,
        _TABLE.delete(),
        _LONG_INTERRUPT,
        _OTHER_TABLE.create(),
        _LONG_INTERRUPT,
        needs=("readonly_mem",),
    ),
)


def _slow(scenario: Scenario) -> Scenario:
    """Tag a scenario as slow: on some kernels its guest never exits, and it runs into its limit."""
    return msgspec.structs.replace(scenario, tags=(*scenario.tags, "slow"))


def _without_quirk(scenario: Scenario) -> Scenario:
    return msgspec.structs.replace(
        scenario,
        name=f"{scenario.name}-without-quirk",
        tags=(*scenario.tags, "quirks"),
        needs=(*scenario.needs, "slot_zap_all_quirk"),
        operations=(WITHOUT_ZAP_ALL, *scenario.operations),
    )


SCENARIOS = (*_BOTH, *map(_without_quirk, _BOTH), *map(_slow, _OUTSIDE))
"""All scenarios of interrupts."""
