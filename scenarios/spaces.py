"""Two address spaces: as_id 1 is what a vCPU sees in system management mode.

The guest stays outside of that mode, so that slots of as_id 1 must never be seen by it.
"""

from scenarios._build import API, A, B, Slot, at, creates, read, write
from vmm.memslots.operations import (
    LOG_DIRTY_PAGES,
    READONLY,
    AnyOperation,
    Scenario,
    Survey,
)

_SMM = 1 << 16
_ONE = Slot(1, 0x100, at("a"), pages=2)
_TWIN = Slot(_SMM | 1, 0x100, at("b"), pages=2)


def _spaces(
    name: str, why: str, *operations: AnyOperation, source: str = API, survey: Survey = "write"
) -> Scenario:
    return Scenario(
        name=name,
        why=why,
        source=source,
        tags=("spaces",),
        mappings=(A, B),
        needs=("smm",),
        survey=survey,
        operations=operations,
    )


SCENARIOS = (
    _spaces(
        "spaces-at-one-gpa",
        "Slots of two address spaces may share gpas; each space reaches its own memory.",
        *creates(_ONE, _TWIN),
        read(0x100),
        _ONE.delete(),
        read(0x100),
    ),
    _spaces(
        "spaces-with-one-id",
        "One id names two slots: deletion in one address space leaves the other's.",
        *creates(_ONE, _TWIN),
        _TWIN.delete(),
        _TWIN.delete(),
        _ONE.delete(),
        _TWIN.create(),
        _ONE.delete(),
    ),
    _spaces(
        "spaces-apart",
        "A slot of as_id 1 alone is a hole outside of system management mode.",
        _TWIN.create(),
        write(0x100, 7),
        _TWIN.move(0x108),
        Slot(2, 0x100, at("a")).create(),
        Slot(2, 0x108, at("a")).create(),
    ),
    _spaces(
        "spaces-move-in-one",
        "A move in one address space leaves the other as it is, and meets no slot of it.",
        *creates(_ONE, _TWIN),
        _TWIN.move(0x101),
        _ONE.move(0x101),
        _ONE.move(0x108),
        _TWIN.move(0x108),
    ),
    _spaces(
        "spaces-overlap-in-one",
        "EEXIST is about the slots of one address space.",
        *creates(_ONE, _TWIN, Slot(_SMM | 2, 0x110, at("b", 4))),
        Slot(_SMM | 2, 0x101, at("b", 4)).create(),
        Slot(_SMM | 3, 0x101, at("b", 5)).create(),
        Slot(_SMM | 3, 0x102, at("b", 5)).create(),
        Slot(3, 0x110, at("a", 4)).create(),
        Slot(3, 0x101, at("a", 4)).create(),
    ),
    _spaces(
        "spaces-flags-in-one",
        "Flags belong to one address space: READONLY in the other stops no write here.",
        *creates(_ONE, Slot(_SMM | 1, 0x100, at("a"), 2, READONLY)),
        write(0x100, 9),
        Slot(_SMM | 1, 0x100, at("a"), 2).create(),
        _ONE.change(READONLY),
    ),
    _spaces(
        "spaces-dirty-log-of-one",
        "A write is logged in the slot that it went through, in no other on the same memory.",
        *creates(
            Slot(1, 0x100, at("a"), 2, LOG_DIRTY_PAGES),
            Slot(_SMM | 1, 0x100, at("a"), 2, LOG_DIRTY_PAGES),
        ),
        write(0x101, 5),
        _TWIN.log(),
        _ONE.log(),
        _ONE.delete(),
        _TWIN.log(),
        _ONE.log(),
        survey="read",
    ),
)
