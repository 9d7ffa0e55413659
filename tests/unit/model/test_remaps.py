"""What a guest comes to that changes its own page tables, copies words, and calls far."""

import msgspec
import pytest

from tests.modelled import only
from vmm.catalogue._starts import lowest_level
from vmm.model.model import Model
from vmm.scenario.content import STUB_OFFSET, identity
from vmm.scenario.features import Features
from vmm.scenario.history import Inspected, Mmio, Touched
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    READONLY,
    CreateVcpu,
    Inspect,
    Mapping,
    Place,
    SetUserMemoryRegion,
    Start,
    Touch,
)
from vmm.scenario.pagetables import PROGRAM_OFFSET, USED, Tables
from vmm.scenario.programs import (
    CODE_SELECTOR,
    FLAT_CODE_DESCRIPTOR,
    LOAD,
    LONG_FAR_CALL,
    copy,
    entries,
    far_pointer,
    remap,
    remap_both,
    writes,
)

TABLES = Tables("a", 0x100, (0x104, 0x105, 0x106, 0x107, 0x103, 0x110, 0x10C), bits=USED)
WORD = TABLES.address(5) + 0x40
BOTH_OFFSET, ATOMIC_OFFSET, RELOAD_OFFSET = 0xB00, 0xC00, 0xD00
FILL = b"\xff" * 4


def model(flags: int = 0) -> Model:
    """Return the model of a VM with tables and programs in slot 1, and 0x10C in slot 2."""
    made = Model((Mapping("a", 8), Mapping("b", 4)), Features())
    descriptor = FLAT_CODE_DESCRIPTOR.to_bytes(8, "little")
    pointer = far_pointer(TABLES.address(3) + STUB_OFFSET)
    page = PAGE_SIZE_BYTES
    for operation in (
        *TABLES.lay(),
        *writes(Place("a", 4 * page + PROGRAM_OFFSET), remap(WORD)),
        *writes(Place("a", 4 * page + BOTH_OFFSET), remap_both(WORD)),
        *writes(Place("a", 4 * page + ATOMIC_OFFSET), remap(WORD, is_atomic=True)),
        *writes(Place("a", 4 * page + RELOAD_OFFSET), remap(WORD, reloads=True)),
        *writes(Place("a", 5 * page + PROGRAM_OFFSET), copy(WORD)),
        *writes(Place("a", 6 * page + PROGRAM_OFFSET), LONG_FAR_CALL),
        *writes(Place("a", 6 * page - 4), descriptor[:4]),
        *writes(Place("a", 6 * page), descriptor[4:]),
        *writes(Place("a", 7 * page + PROGRAM_OFFSET), pointer),
        SetUserMemoryRegion(1, 0x100000, 0x8000, Place("a")),
        SetUserMemoryRegion(2, 0x10C000, 0x1000, Place("b"), flags),
        SetUserMemoryRegion(3, 0x114000, 0x1000, Place("b", 0x1000)),
        Inspect(),
    ):
        only(made, operation)
    return made


def mapping(gfn: int, entry: int = 5, program: int = PROGRAM_OFFSET) -> Start:
    code, table = TABLES.address(0) + program, TABLES.address(4)
    return Start(code, TABLES.gpa, table + 8 * entry, gfn * PAGE_SIZE_BYTES | USED)


COPYING = Start(TABLES.address(1) + PROGRAM_OFFSET, TABLES.gpa, TABLES.address(6) + 0x40)
CALLING = Start(
    TABLES.address(2) + PROGRAM_OFFSET,
    TABLES.gpa,
    TABLES.address(3) + PROGRAM_OFFSET,
    stack=TABLES.address(6) + 0x100,
    interrupts=TABLES.address(2) - 4 - CODE_SELECTOR,
)


def test_a_page_mapped_anew_is_reached_at_once() -> None:
    made = model()
    assert only(made, mapping(0x114)).outcome == Touched(identity(1, 1))
    hole = Mmio(0x111040, False, FILL)
    assert only(made, mapping(0x111)).outcome == Touched(0xFFFFFFFF, (hole,))
    assert only(made, mapping(0x10C)).outcome == Touched(identity(1, 0))


@pytest.mark.parametrize("program", [PROGRAM_OFFSET, ATOMIC_OFFSET, RELOAD_OFFSET])
def test_the_entry_is_written(program: int) -> None:
    made = model()
    assert only(made, mapping(0x114, program=program)).outcome == Touched(identity(1, 1))
    found = only(made, Inspect()).outcome
    assert isinstance(found, Inspected)
    (change,) = found.changes
    assert (change.mapping, change.offset) == ("a", 3 * PAGE_SIZE_BYTES + 8 * 5 + 1)
    assert change.data == b"\x40"


@pytest.mark.parametrize(
    "operation",
    [
        mapping(0x114, entry=6),
        mapping(0x114, entry=0),
        msgspec.structs.replace(mapping(0x114), value=0x114000),
    ],
)
def test_what_is_not_the_address_s_own_entry_is_not_known(operation: Start) -> None:
    assert model().allowed(operation) == ()


def test_a_table_that_is_mapped_itself_shows_what_no_walk_has_used() -> None:
    made = model()
    held = only(made, Touch(0x103040)).outcome
    assert only(made, mapping(0x103)).outcome == held
    assert only(made, mapping(0x103, program=BOTH_OFFSET)).outcome == held


def test_why_an_outcome_is_not_known_is_said() -> None:
    made = model()
    (code,) = made.allowed(mapping(0x114))
    assert code.outcome == Touched(identity(1, 1))
    assert "is not settled" in made.why_unknown(mapping(0x114, entry=0))
    beyond = msgspec.structs.replace(mapping(0x114), address=TABLES.address(0) + 0x40)
    assert "none of the scenario's programs" in made.why_unknown(beyond)
    assert made.why_unknown(Inspect()) == ""


def test_two_pages_are_mapped_anew_and_the_second_one_is_answered() -> None:
    made = model()
    both = mapping(0x114, program=BOTH_OFFSET)
    assert only(made, both).outcome == Touched(identity(1, 1))
    found = only(made, Inspect()).outcome
    assert isinstance(found, Inspected)
    table = 3 * PAGE_SIZE_BYTES
    changed = {change.offset for change in found.changes}
    assert changed == {table + 8 * 5 + 1, table + 8 * 6 + 1}
    hole = Mmio(0x111040, False, FILL)
    both = mapping(0x111, program=BOTH_OFFSET)
    assert only(made, both).outcome == Touched(0xFFFFFFFF, (hole, hole))


@pytest.mark.parametrize(("gfn", "entry"), [(0x114, 4), (0x114, 6)])
def test_of_two_pages_each_has_to_have_its_own_entry(gfn: int, entry: int) -> None:
    assert model().allowed(mapping(gfn, entry, BOTH_OFFSET)) == ()


DIRECTORY = Tables("a", 0x100, (0x104, 0x105, 0x106, 0x102), bits=USED)
BIG_WORD = (1 << 21) + 0x40
"""An address that the second entry of the table at 0x102 leads to."""


def with_two_tables() -> Model:
    """Return the model of a VM whose second entry of the table at 0x102 leads to 0x10C."""
    made = Model((Mapping("a", 8), Mapping("b", 2)), Features())
    for operation in (
        *DIRECTORY.lay(),
        *entries(Place("a", 2 * PAGE_SIZE_BYTES), {1: 0x10C * PAGE_SIZE_BYTES | USED}),
        *lowest_level(Place("b"), (0x105, 0x106), USED),
        *lowest_level(Place("b", PAGE_SIZE_BYTES), (0x106, 0x105), USED),
        *writes(Place("a", 4 * PAGE_SIZE_BYTES + PROGRAM_OFFSET), remap(BIG_WORD)),
        *writes(Place("a", 5 * PAGE_SIZE_BYTES + PROGRAM_OFFSET), LOAD),
        SetUserMemoryRegion(1, 0x100000, 0x8000, Place("a")),
        SetUserMemoryRegion(2, 0x10C000, 0x2000, Place("b")),
    ):
        only(made, operation)
    return made


def leading(offset: int, value: int) -> Start:
    """Return a start that writes a word to the table at 0x102, and reads BIG_WORD."""
    code = DIRECTORY.address(0) + PROGRAM_OFFSET
    return Start(code, DIRECTORY.gpa, DIRECTORY.address(3) + offset, value)


def reading(address: int) -> Start:
    return Start(DIRECTORY.address(1) + PROGRAM_OFFSET, DIRECTORY.gpa, address)


NEXT_TABLE = 0x10D * PAGE_SIZE_BYTES | USED
ACROSS = leading(6, (NEXT_TABLE & 0xFFFF) << 16)


@pytest.mark.parametrize("operation", [leading(8, NEXT_TABLE), ACROSS])
def test_an_entry_above_the_last_level_counts_at_once(operation: Start) -> None:
    made = with_two_tables()
    assert only(made, reading(BIG_WORD)).outcome == Touched(identity(0, 5))
    assert only(made, operation).outcome == Touched(identity(0, 6))
    back = leading(8, (NEXT_TABLE & 0xFFF) | 0x10C000)
    assert only(made, back).outcome == Touched(identity(0, 5))
    assert only(made, reading(BIG_WORD + PAGE_SIZE_BYTES)).outcome == Touched(identity(0, 6))


def test_other_addresses_below_that_entry_may_be_cached() -> None:
    made = with_two_tables()
    only(made, reading(BIG_WORD + PAGE_SIZE_BYTES))
    only(made, ACROSS)
    assert made.allowed(reading(BIG_WORD + PAGE_SIZE_BYTES)) == ()
    assert only(made, reading(DIRECTORY.address(2) + 0x40)).outcome == Touched(identity(0, 6))


def test_what_changes_the_entry_before_is_not_known() -> None:
    """The program has used that entry."""
    changed = msgspec.structs.replace(ACROSS, value=ACROSS.value | 1)
    assert with_two_tables().allowed(changed) == ()


def test_with_another_vcpu_it_is_not_known() -> None:
    made = model()
    only(made, CreateVcpu(1))
    only(made, TABLES.run(3, vcpu=1))
    assert made.allowed(mapping(0x114)) == ()


def test_a_word_is_copied_from_where_the_address_is_mapped_to() -> None:
    made = model()
    hole = Mmio(0x110040, False, FILL)
    assert only(made, COPYING).outcome == Touched(0xFFFFFFFF, (hole,))
    only(made, mapping(0x114))
    assert only(made, COPYING).outcome == Touched(identity(1, 1))


def test_a_copy_to_a_readonly_slot_exits() -> None:
    made = model(READONLY)
    only(made, mapping(0x114))
    exits = (Mmio(0x10C040, True, identity(1, 1).to_bytes(4, "little")),)
    assert only(made, COPYING).outcome == Touched(identity(1, 0), exits)


def test_a_far_call_takes_a_descriptor_that_crosses_pages() -> None:
    made = model()
    assert only(made, CALLING).outcome == Touched(identity(0, 7))
    found = only(made, Inspect()).outcome
    assert isinstance(found, Inspected)
    frame = (CALLING.address + 2).to_bytes(4, "little") + CODE_SELECTOR.to_bytes(4, "little")
    pushed = {each.offset - 0xF8: each.data for each in found.changes if each.mapping == "b"}
    assert len(pushed) == len(found.changes) > 1
    assert all(frame[at:].startswith(data) for at, data in pushed.items())


def test_a_far_call_without_its_descriptor_or_stack_is_not_known() -> None:
    made = model(READONLY)
    assert made.allowed(CALLING) == ()
    moved = msgspec.structs.replace(CALLING, interrupts=TABLES.address(2) - CODE_SELECTOR)
    assert model().allowed(moved) == ()
