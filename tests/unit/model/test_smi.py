"""What a system management interrupt comes to: where a vCPU's state is saved, and what runs."""

import pytest
from msgspec import structs

from tests.modelled import only
from vmm.model.model import Model
from vmm.scenario.content import STUB_OFFSET, identity, stub
from vmm.scenario.features import Features
from vmm.scenario.history import DirtyPages, Inspected, Mmio, Touched
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    READONLY,
    SMBASE,
    AnyOperation,
    GetDirtyLog,
    HostWrite,
    Inspect,
    Mapping,
    Place,
    SetUserMemoryRegion,
    Start,
)
from vmm.scenario.programs import SMM_RETURN, SMM_STATE_BYTES, smm_store, writes

SMRAM = 1 << 16 | 1
RUN = Start(0x100000 + STUB_OFFSET, smi=True)
AGAIN = Start(RUN.address)
CODE = identity(1, 8)
STATE = 8 * 0x1000 - SMM_STATE_BYTES


def model(*operations: AnyOperation, features: Features | None = None) -> Model:
    """Return the model of a VM with SMRAM on "a", the same gpas of as_id 0 on "b", and code."""
    usual = Features(smm=True, address_spaces=2, readonly_mem=True)
    made = Model((Mapping("a", 8), Mapping("b", 9)), features or usual)
    for operation in (
        *writes(Place("a"), SMM_RETURN),
        SetUserMemoryRegion(SMRAM, 0x38000, 0x8000, Place("a"), LOG_DIRTY_PAGES),
        SetUserMemoryRegion(1, 0x38000, 0x8000, Place("b"), LOG_DIRTY_PAGES),
        SetUserMemoryRegion(2, 0x100000, 0x1000, Place("b", 0x8000)),
        Inspect(),
        *operations,
    ):
        only(made, operation)
    return made


def test_the_state_is_saved_in_as_id_1_and_the_code_runs() -> None:
    made = model()
    started = only(made, RUN)
    assert (started.outcome, started.rule.name) == (Touched(CODE), "smm-entered")
    found = only(made, Inspect()).outcome
    assert isinstance(found, Inspected)
    assert found.changes == ()
    assert found.room == (("a", STATE, SMM_STATE_BYTES),)
    assert only(made, GetDirtyLog(SMRAM)).outcome == DirtyPages((7,), words=1)
    assert only(made, GetDirtyLog(1)).outcome == DirtyPages((), words=1)


WORD = 0x110040
STORING = tuple(writes(Place("a"), smm_store(WORD, 0xF00D)))


def test_the_handler_writes_in_as_id_1() -> None:
    under = SetUserMemoryRegion(4, 0x110000, 0x1000, Place("b", 0x1000))
    made = model(*STORING, under)
    exits = (Mmio(WORD, True, bytes.fromhex("0df00000")),)
    assert only(made, RUN).outcome == Touched(CODE, exits)
    only(made, SetUserMemoryRegion(1 << 16 | 2, 0x110000, 0x1000, Place("b", 0x2000)))
    assert only(made, RUN).outcome == Touched(CODE)
    found = only(made, Inspect()).outcome
    assert isinstance(found, Inspected)
    assert [each.offset for each in found.changes if each.mapping == "b"] == [0x2040]


def test_a_handler_that_writes_where_it_is_or_where_the_code_is_is_not_followed() -> None:
    for place in (Place("a"), Place("a", 7 * 0x1000), Place("b", 0x8000)):
        inside = SetUserMemoryRegion(1 << 16 | 2, 0x110000, 0x1000, place)
        assert model(*STORING, inside).allowed(RUN) == ()


def test_smbase_says_where_the_handler_is_and_where_the_state_is_saved() -> None:
    further = structs.replace(RUN, smbase=SMBASE + 0x100)
    other = SetUserMemoryRegion(1 << 16 | 2, 0x40000, 0x1000, Place("b", 0x3000), LOG_DIRTY_PAGES)
    made = model(*writes(Place("a", 0x100), SMM_RETURN), SetUserMemoryRegion(1), other)
    assert only(made, further).outcome == Touched(CODE)
    found = only(made, Inspect()).outcome
    assert isinstance(found, Inspected)
    assert found.room == (("a", 0x7F00, 0x100), ("b", 0x3000, 0x100))
    assert only(made, GetDirtyLog(SMRAM)).outcome == DirtyPages((7,), words=1)
    assert only(made, GetDirtyLog(other.slot)).outcome == DirtyPages((0,), words=1)


def test_a_state_half_of_which_is_in_a_hole_is_not_followed() -> None:
    further = structs.replace(RUN, smbase=SMBASE + 0x100)
    assert model(*writes(Place("a", 0x100), SMM_RETURN)).allowed(further) == ()


def test_code_whose_bytes_are_known_starts_after_it() -> None:
    made = model(RUN)
    assert only(made, AGAIN).outcome == only(made, RUN).outcome == Touched(CODE)


def test_code_where_a_state_was_saved_is_not_followed() -> None:
    made = model(
        *writes(Place("a", STATE), stub(0xC0DE)),
        SetUserMemoryRegion(3, 0x200000, 0x8000, Place("a")),
    )
    there = Start(0x200000 + STATE)
    assert only(made, there).outcome == Touched(0xC0DE)
    only(made, RUN)
    assert made.allowed(there) == ()


@pytest.mark.parametrize(
    "change",
    [
        SetUserMemoryRegion(SMRAM),
        HostWrite(Place("a"), 0x9090_9090),
        SetUserMemoryRegion(SMRAM, 0x39000, 0x8000, Place("a")),
    ],
)
def test_an_smi_without_a_handler_that_returns_is_not_followed(change: AnyOperation) -> None:
    assert model(change).allowed(RUN) == ()


def test_a_state_that_cannot_be_written_is_not_followed() -> None:
    smram = SetUserMemoryRegion(SMRAM, 0x38000, 0x8000, Place("a"), READONLY)
    assert model(SetUserMemoryRegion(SMRAM), smram).allowed(RUN) == ()


def test_without_smm_nothing_is_known() -> None:
    assert model(features=Features(address_spaces=2)).allowed(RUN) == ()
