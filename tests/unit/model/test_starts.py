"""What vCPUs come to that start in slots of the scenario: page tables, their bits, and stops."""

from typing import Literal

import pytest

from tests.modelled import only, outcome
from vmm.model.model import Model
from vmm.scenario.content import identity
from vmm.scenario.features import Features
from vmm.scenario.history import (
    DirtyPages,
    Inspected,
    Mmio,
    Stopped,
    Touched,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    CreateIrqchip,
    Execute,
    GetDirtyLog,
    HostWrite,
    Inspect,
    Instruction,
    Mapping,
    NewVm,
    Place,
    SetUserMemoryRegion,
    Start,
    Touch,
)
from vmm.scenario.pagetables import PLAIN, USED, Tables
from vmm.scenario.programs import ACCESSED, LARGE, LOAD, STORE, writes

TABLES = Tables("a", 0x100, (0x104, 0x105, 0x106, 0x109))
SET = Tables("a", 0x100, (0x104, 0x105, 0x106, 0x109), bits=USED)
VALUE = 0x11223344
WORD = VALUE.to_bytes(4, "little")
STOPS = {"internal-error", "EFAULT", "shutdown", "fail-entry"}


def model(tables: Tables = TABLES, flags: int = 0, features: Features | None = None) -> Model:
    """Return the model of a VM with page tables in slot 1, and code and data in slot 2."""
    made = Model((Mapping("a", 8), Mapping("b", 4)), features or Features())
    programs = [
        *writes(Place("a", 4 * PAGE_SIZE_BYTES + 0x900), STORE),
        *writes(Place("a", 5 * PAGE_SIZE_BYTES + 0x900), LOAD),
    ]
    pages = Place("a", 4 * PAGE_SIZE_BYTES)
    for operation in (
        *tables.lay(),
        *programs,
        SetUserMemoryRegion(1, 0x100000, 0x4000, Place("a"), flags),
        SetUserMemoryRegion(2, 0x104000, 0x4000, pages, flags & LOG_DIRTY_PAGES),
        Inspect(),
    ):
        only(made, operation)
    return made


def changed(made: Model) -> dict[int, bytes]:
    """Return what changed in the mapping, by its offset."""
    found = outcome(made, Inspect())
    assert isinstance(found, Inspected)
    assert {change.mapping for change in found.changes} <= {"a"}
    return {change.offset: change.data for change in found.changes}


def stops(made: Model, operation: AnyOperation) -> set[str]:
    """Return why a vCPU may stop, where it stops for sure."""
    outcomes = [each.outcome for each in made.allowed(operation)]
    reasons = {each.reason for each in outcomes if isinstance(each, Stopped)}
    assert len(reasons) == len(outcomes)
    return reasons


def test_code_is_fetched_through_tables_which_are_marked_as_accessed() -> None:
    made = model()
    choice = only(made, TABLES.run(2))
    assert choice.outcome == Touched(identity(0, 6))
    assert choice.rule.name == "guest-tables"
    mark = bytes((PLAIN | ACCESSED,))
    leaf = 3 * PAGE_SIZE_BYTES + 2 * 8
    assert changed(made) == {0: mark, 0x1000: mark, 0x2000: mark, leaf: mark}
    assert outcome(made, TABLES.run(2)) == Touched(identity(0, 6))
    assert changed(made) == {}


def test_what_is_stored_makes_its_page_dirty_in_the_tables() -> None:
    made = model()
    assert outcome(made, TABLES.access(0, 2, VALUE)) == Touched(VALUE)
    found = changed(made)
    assert found[6 * PAGE_SIZE_BYTES + 0x40] == WORD
    assert found[3 * PAGE_SIZE_BYTES + 2 * 8] == bytes((USED,))
    assert found[3 * PAGE_SIZE_BYTES] == bytes((PLAIN | ACCESSED,))


def test_a_word_is_read_and_its_page_is_not_dirty() -> None:
    made = model()
    assert outcome(made, TABLES.access(1, 2)) == Touched(identity(0, 6))
    assert changed(made)[3 * PAGE_SIZE_BYTES + 2 * 8] == bytes((PLAIN | ACCESSED,))


@pytest.mark.parametrize("mode", ["real", "long"])
def test_an_instruction_that_writes_an_entry_counts_in_real_mode(
    mode: Literal["real", "long"],
) -> None:
    made = model(SET)
    only(made, SET.run(2))
    written = Instruction("ins", 0x103010, value=0x107000 | USED, mode=mode)
    only(made, written)
    found = [each.outcome for each in made.allowed(SET.run(2))]
    assert found == ([Touched(identity(0, 7))] if mode == "real" else [])


def test_tables_are_in_the_log_once_a_bit_is_set_and_may_be_later() -> None:
    made = model(flags=LOG_DIRTY_PAGES)
    only(made, TABLES.run(2))
    assert outcome(made, GetDirtyLog(1)) == DirtyPages((0, 1, 2, 3), (), 1)
    only(made, TABLES.run(2))
    assert outcome(made, GetDirtyLog(1)) == DirtyPages((), (0, 1, 2, 3), 1)
    assert outcome(made, GetDirtyLog(2)) == DirtyPages((), (), 1)
    only(made, TABLES.access(0, 2, VALUE))
    assert outcome(made, GetDirtyLog(2)) == DirtyPages((2,), (), 1)


@pytest.mark.parametrize("start", [SET.run(9), SET.access(1, 9)])
def test_tables_may_be_in_the_log_where_a_walk_through_them_stops(start: Start) -> None:
    made = model(SET, LOG_DIRTY_PAGES)
    assert outcome(made, start) == Stopped("shutdown")
    assert outcome(made, GetDirtyLog(1)) == DirtyPages((), (0, 1, 2, 3), 1)


def test_what_is_read_may_be_logged_where_reads_make_dirty() -> None:
    made = model(SET, LOG_DIRTY_PAGES, Features(reads_make_dirty=True))
    only(made, SET.access(1, 2))
    assert outcome(made, GetDirtyLog(2)) == DirtyPages((), (1, 2), 1)
    made = model(SET, LOG_DIRTY_PAGES)
    only(made, SET.access(1, 2))
    assert outcome(made, GetDirtyLog(2)) == DirtyPages((), (), 1)


def test_readonly_tables_are_used_without_a_mark_or_stop_the_vcpu() -> None:
    made = model(flags=READONLY)
    usual, *others = made.allowed(TABLES.run(2))
    assert usual.outcome == Touched(identity(0, 6))
    assert {o.outcome.reason for o in others if isinstance(o.outcome, Stopped)} == STOPS
    assert {choice.rule.name for choice in (usual, *others)} == {"readonly-tables"}
    usual.adopt()
    assert changed(made) == {}


def test_tables_in_a_hole_stop_the_vcpu() -> None:
    made = model(SET)
    only(made, SetUserMemoryRegion(1))
    assert stops(made, SET.run(2)) == STOPS
    assert made.allowed(SET.run(2))[0].rule.name == "tables-outside"


def test_what_the_walk_has_marked_by_a_stop_is_not_known() -> None:
    made = model()
    only(made, SetUserMemoryRegion(1))
    only(made, SetUserMemoryRegion(1, 0x100000, 0x1000, Place("a")))
    assert made.allowed(TABLES.run(2)) == ()


def test_tables_move_with_their_slot() -> None:
    made = model(SET)
    only(made, SetUserMemoryRegion(1, 0x200000, 0x4000, Place("a")))
    assert stops(made, SET.run(2)) == STOPS
    assert stops(made, Start(0x2800, 0x200000)) == STOPS
    only(made, SetUserMemoryRegion(1, 0x100000, 0x4000, Place("a")))
    assert outcome(made, SET.run(2)) == Touched(identity(0, 6))


@pytest.mark.parametrize("address", [0x5800, 1 << 21, 1 << 30, 1 << 39])
def test_an_address_that_is_not_mapped_is_a_shutdown(address: int) -> None:
    assert stops(model(SET), Start(address, SET.gpa)) == {"shutdown"}


def test_a_page_that_may_not_be_written_is_a_shutdown_for_a_store_alone() -> None:
    made = model(SET)
    only(made, HostWrite(Place("a", 3 * PAGE_SIZE_BYTES + 2 * 8), 0x106000 | USED & ~2))
    assert stops(made, SET.access(0, 2, VALUE)) == {"shutdown"}
    assert outcome(made, SET.access(1, 2)) == Touched(identity(0, 6))


def test_a_hole_is_mmio_and_nothing_to_fetch() -> None:
    made = model(SET)
    assert outcome(made, SET.access(1, 3)) == Touched(
        0xFFFF_FFFF, (Mmio(0x109040, False, b"\xff" * 4),)
    )
    assert outcome(made, SET.access(0, 3, VALUE)) == Touched(
        0xFFFF_FFFF, (Mmio(0x109040, True, WORD), Mmio(0x109040, False, b"\xff" * 4))
    )
    assert stops(made, SET.run(3)) == STOPS


def test_a_store_to_a_readonly_slot_exits_and_reads_memory() -> None:
    made = model(SET)
    only(made, SetUserMemoryRegion(3, 0x109000, 0x1000, Place("b"), READONLY))
    assert outcome(made, SET.access(0, 3, VALUE)) == Touched(
        identity(1, 0), (Mmio(0x109040, True, WORD),)
    )


def test_tables_that_changed_after_they_were_used_are_not_known() -> None:
    made = model(SET)
    only(made, SET.run(2))
    only(made, HostWrite(Place("a", 3 * PAGE_SIZE_BYTES + 6 * 8), 0x106000 | USED))
    assert outcome(made, SET.run(6)) == Touched(identity(0, 6))
    only(made, HostWrite(Place("a", 3 * PAGE_SIZE_BYTES + 2 * 8), 0x105000 | USED))
    assert made.allowed(SET.run(2)) == ()


def test_what_the_only_vcpu_wrote_to_tables_in_use_counts() -> None:
    made = model(SET)
    only(made, SET.run(2))
    only(made, Touch(0x103010, "write", value=0x105000 | USED))
    assert outcome(made, SET.run(2)) == Touched(identity(0, 5))


def test_what_others_wrote_to_tables_in_use_is_not_known() -> None:
    made = model(SET)
    only(made, SET.run(2))
    only(made, HostWrite(Place("a", 3 * PAGE_SIZE_BYTES + 2 * 8), 0x105000 | USED))
    assert made.allowed(SET.run(2)) == ()
    made = model(SET)
    only(made, SET.run(2))
    only(made, SET.run(2, vcpu=1))
    only(made, Touch(0x103010, "write", value=0x105000 | USED))
    assert made.allowed(SET.run(2)) == ()


@pytest.mark.parametrize("entry", [0x106000 | USED | 4, 0x106000 | USED | 1 << 9])
def test_bits_that_are_not_followed_are_not_known(entry: int) -> None:
    made = model(SET)
    only(made, HostWrite(Place("a", 3 * PAGE_SIZE_BYTES + 2 * 8), entry))
    assert made.allowed(SET.run(2)) == ()


def test_a_large_page_is_followed() -> None:
    made = model(SET)
    only(made, HostWrite(Place("a", 2 * PAGE_SIZE_BYTES + 8), USED | LARGE))
    assert outcome(made, Start((1 << 21) + 0x106800, SET.gpa)) == Touched(identity(0, 6))


def test_code_that_is_none_of_the_programs_is_not_known() -> None:
    assert model(SET).allowed(Start(0x2400, SET.gpa)) == ()


def test_real_mode_starts_without_tables() -> None:
    made = model(SET)
    assert outcome(made, Start(0x106800)) == Touched(identity(0, 6))
    assert stops(made, Start(0x10A800)) == STOPS


def test_with_interrupt_controllers_in_the_kernel_nothing_is_known() -> None:
    made = Model((Mapping("a", 8),), Features())
    only(made, CreateIrqchip())
    assert made.allowed(Start(0x106800)) == ()


def test_a_vm_that_never_had_a_slot_may_have_no_memory_for_page_tables() -> None:
    made = Model((Mapping("a", 8),), Features())
    for operation in (Execute(0x100000), Start(0x100800), Start(0xFFFF_FFF0)):
        assert stops(made, operation) == STOPS | {"ENOSPC"}
    only(made, SetUserMemoryRegion(1, 0x100000, 0x1000, Place("a")))
    assert outcome(made, Execute(0x100000)) == Touched(identity(0, 0))
    only(made, SetUserMemoryRegion(1))
    assert stops(made, Execute(0x100000)) == STOPS
    assert stops(made, Start(0x800, 0)) == STOPS
    only(made, NewVm())
    assert stops(made, Execute(0x100000)) == STOPS | {"ENOSPC"}
