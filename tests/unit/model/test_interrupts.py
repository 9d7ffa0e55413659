"""What interrupts come to: where tables lead, what is pushed, and what is not followed."""

import pytest

from vmm.model.allowed import Allowed
from vmm.model.model import Model
from vmm.scenario.content import identity
from vmm.scenario.features import Features
from vmm.scenario.history import DirtyPages, HostChange, Inspected, Mmio, Stopped, Touched
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    GetDirtyLog,
    HostWrite,
    Inspect,
    Mapping,
    Place,
    SetUserMemoryRegion,
    Start,
)
from vmm.scenario.pagetables import USED, Tables, long_table, real_interrupt, real_table
from vmm.scenario.programs import INTERRUPT, handler_of, long_gate, real_gate, writes

REAL = real_interrupt(0x21, 0x20, 0x4)
LONG_TABLES = Tables("b", 0x100, (0x20, 0x21, 0x22, 0x23, 0x4), bits=USED)
LONG = LONG_TABLES.interrupt(1, 0, 4)


def model(long: bool = False, flags: int = 0) -> Model:
    """Return the model of a VM: table, program, two handlers and a stack from gfn 0x20 on."""
    made = Model((Mapping("a", 5), Mapping("b", 4)), Features())
    laid = long_table(Place("a"), 2) if long else real_table(Place("a"), 0x22)
    for operation in (
        *laid,
        *writes(Place("a", PAGE_SIZE_BYTES + 0x900), INTERRUPT),
        *LONG_TABLES.lay(),
        SetUserMemoryRegion(1, 0x20000, 0x4000, Place("a"), flags & READONLY),
        SetUserMemoryRegion(2, 0x4000, 0x1000, Place("a", 0x4000), flags),
        SetUserMemoryRegion(3, 0x100000, 0x4000, Place("b")),
        Inspect(),
    ):
        made.prefer(operation)
    return made


def first(made: Model, operation: AnyOperation) -> Allowed:
    """Return the first outcome of an operation, and come to the state after it."""
    return made.prefer(operation)[0]


def changes(made: Model) -> tuple[HostChange, ...]:
    outcome = first(made, Inspect()).outcome
    assert isinstance(outcome, Inspected)
    return outcome.changes


def test_in_real_mode_three_words_are_pushed_and_the_handler_runs() -> None:
    made = model(flags=LOG_DIRTY_PAGES)
    (choice,) = made.allowed(REAL)
    assert (choice.outcome, choice.rule.name) == (Touched(identity(0, 2)), "interrupt-table")
    choice.adopt()
    frame = bytes.fromhex("0219 0020 0200")
    assert changes(made) == (HostChange("a", 0x4400 - 6, frame),)
    assert first(made, GetDirtyLog(2)).outcome == DirtyPages((0,), (), 1)


def test_in_64_bit_mode_five_words_are_pushed_or_nothing_is_emulated() -> None:
    made = model(long=True)
    usual, other = made.allowed(LONG)
    assert usual.outcome == Touched(identity(0, 2))
    assert (other.outcome, other.rule.name) == (Stopped("internal-error"), "not-emulated")
    usual.adopt()
    words = (0x1902, 8, 2, 0x4400, 0x10)
    frame = b"".join(word.to_bytes(8, "little") for word in words)
    (change,) = changes(made)
    assert change.offset == 0x4400 - 40 + 0  # The high bytes of what was there change, too.
    assert change.data == frame[: len(change.data)]


def test_the_table_that_is_there_now_says_where_it_goes() -> None:
    made = model()
    made.prefer(HostWrite(Place("a", 0x80), real_gate(0x23800)))
    assert first(made, REAL).outcome == Touched(identity(0, 3))


@pytest.mark.parametrize("long", [False, True])
def test_tables_and_handlers_are_only_read(long: bool) -> None:
    made = model(long=long, flags=READONLY)
    interrupt = LONG if long else REAL
    assert first(made, interrupt).rule.name == "interrupt-outside"  # The stack is READONLY, too.
    made.prefer(SetUserMemoryRegion(2))
    made.prefer(SetUserMemoryRegion(2, 0x4000, 0x1000, Place("a", 0x4000)))
    assert first(made, interrupt).outcome == Touched(identity(0, 2))


@pytest.mark.parametrize("flags", [READONLY, None])
def test_each_word_that_is_pushed_outside_of_memory_exits(flags: int | None) -> None:
    made = model()
    made.prefer(SetUserMemoryRegion(2))
    if flags is not None:
        made.prefer(SetUserMemoryRegion(2, 0x4000, 0x1000, Place("a", 0x4000), flags))
    usual, other = made.allowed(REAL)
    words = ((0x43FE, b"\x02\x00"), (0x43FC, b"\x00\x20"), (0x43FA, b"\x02\x19"))
    exits = tuple(Mmio(gpa, True, data) for gpa, data in words)
    assert usual.outcome == Touched(identity(0, 2), exits)
    assert other.outcome == Stopped("internal-error")
    usual.adopt()
    assert changes(made) == ()


def test_without_its_table_an_interrupt_is_not_delivered() -> None:
    made = model()
    made.prefer(SetUserMemoryRegion(1, 0x21000, 0x4000, Place("a"), 0))
    start = real_interrupt(0x22, 0x20, 0x4)
    (choice,) = made.allowed(start)
    assert (choice.outcome, choice.rule.name) == (Stopped("internal-error"), "interrupt-outside")
    assert choice.is_apart  # It may have been pushed, or not.


@pytest.mark.parametrize("slot", [1, 2, 3])
def test_what_is_not_in_memory_is_not_followed(slot: int) -> None:
    made = model(long=True)
    made.prefer(SetUserMemoryRegion(slot))
    assert all(isinstance(each.outcome, Stopped) for each in made.allowed(LONG))


def test_a_gate_of_another_kind_is_not_followed() -> None:
    made = model(long=True)
    made.prefer(HostWrite(Place("a", 0x204), 0x8F00))
    assert made.allowed(LONG) == ()


def test_a_descriptor_of_another_kind_is_not_followed() -> None:
    made = model(long=True)
    made.prefer(HostWrite(Place("a", 12), 0x00209A00))
    assert made.allowed(LONG) == ()


def test_without_a_table_the_program_is_not_known() -> None:
    assert model().allowed(Start(0x21900)) == ()


@pytest.mark.parametrize("address", [0x800, 0x31800, 0xFFFF_F800])
def test_gates_lead_back_to_their_handlers(address: int) -> None:
    assert handler_of(long_gate(address)) == address
    low = address & 0xF_FFFF
    assert handler_of(real_gate(low).to_bytes(4, "little")) == low
