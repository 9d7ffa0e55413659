"""What vCPUs come to that start in 32-bit mode, with page tables of two levels and of PAE."""

from dataclasses import replace

import pytest

from tests.modelled import outcome
from tests.unit.model import test_starts as starts
from tests.unit.model.test_starts import VALUE, WORD, changed
from vmm.model.model import Model
from vmm.scenario.content import identity
from vmm.scenario.features import Features
from vmm.scenario.history import HostChange, Inspected, Mmio, Stopped, Touched
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    HostWrite,
    Inspect,
    Place,
    SetUserMemoryRegion,
    Start,
)
from vmm.scenario.pagetables import PLAIN, USED, Tables
from vmm.scenario.programs import ACCESSED, DIRTY, ENTRY_BYTES, LARGE, PRESENT, copy, writes

GFNS = (0x104, 0x105, 0x106, 0x109)
TWO = Tables("a", 0x100, GFNS, paging="two-level")
PAE = Tables("a", 0x100, GFNS, paging="pae", begin=0xE20)


def model(tables: Tables) -> Model:
    """Return the model of a VM where guests run in 32-bit mode."""
    return starts.model(tables, features=Features(starts_32_bit=True))


def test_where_guests_run_in_64_bit_mode_only_nothing_is_known() -> None:
    made = starts.model(TWO)
    assert made.allowed(TWO.run(2)) == ()
    assert "do not run in 32-bit mode" in made.why_unknown(TWO.run(2))


@pytest.mark.parametrize("tables", [TWO, PAE, replace(TWO, start=0x80_0000)])
def test_it_executes_reads_and_writes_where_the_tables_lead(tables: Tables) -> None:
    tables = replace(tables, bits=USED)
    made = model(tables)
    assert outcome(made, tables.access(1, 3)) == Touched(
        0xFFFF_FFFF, (Mmio(0x109040, False, b"\xff" * 4),)
    )
    assert outcome(made, tables.run(2)) == Touched(identity(0, 6))
    assert outcome(made, tables.access(0, 2, VALUE)) == Touched(VALUE)
    assert outcome(made, tables.access(1, 2)) == Touched(VALUE)


def test_bits_are_set_in_entries_of_four_bytes() -> None:
    made = model(TWO)
    outcome(made, TWO.access(0, 2, VALUE))
    assert changed(made) == {
        0x0: bytes((PLAIN | ACCESSED,)),
        0x1000: bytes((PLAIN | ACCESSED,)),
        0x1008: bytes((PLAIN | ACCESSED | DIRTY,)),
        0x6040: WORD,
    }


def test_the_highest_entry_of_pae_has_no_bits_to_set_but_a_processor_may_set_one() -> None:
    made = model(PAE)
    outcome(made, PAE.run(2))
    found = changed(made)
    assert set(found) <= {0xE20, 0x1000, 0x2010}
    assert outcome(made, PAE.run(2)) == Touched(identity(0, 6))


def test_a_processor_may_set_it_where_the_vcpu_stops_too() -> None:
    made = model(PAE)
    assert outcome(made, replace(PAE, start=0x20_0000).run(0)) == Stopped("shutdown")
    (looked,) = made.allowed(Inspect())
    assert isinstance(looked.outcome, Inspected)
    marked = HostChange("a", PAE.begin, bytes((PRESENT | ACCESSED,)))
    assert looked.outcome.admits(Inspected((marked,)))


def test_where_it_may_be_set_kvm_may_not_walk_for_an_exit() -> None:
    tables = replace(PAE, bits=USED)
    exits, by_another = tables.access(1, 3), tables.access(1, 3, vcpu=1)
    assert model(tables).allowed(exits)
    made = model(tables)
    outcome(made, tables.run(2))
    assert made.allowed(exits) == made.allowed(by_another) == ()
    assert outcome(made, tables.access(1, 2)) == Touched(identity(0, 6))


@pytest.mark.parametrize("entry", range(4))
def test_other_bits_of_a_highest_entry_of_pae_are_not_known(entry: int) -> None:
    made = model(PAE)
    outcome(made, HostWrite(Place("a", PAE.begin + entry * ENTRY_BYTES), 0x101003))
    assert made.allowed(PAE.run(2)) == ()
    outcome(made, HostWrite(Place("a", PAE.begin + entry * ENTRY_BYTES), 0x101001 - bool(entry)))
    assert outcome(made, PAE.run(2)) == Touched(identity(0, 6))


def _above(entry: int) -> Model:
    made = model(TWO)
    outcome(made, HostWrite(Place("a", 8), entry))
    outcome(made, SetUserMemoryRegion(3, 0x1_0080_0000, PAGE_SIZE_BYTES, Place("b")))
    return made


def test_a_page_of_4_mib_may_lie_above_4_gib() -> None:
    made = _above(0x0080_2000 | USED | LARGE)
    assert outcome(made, Start(0x80_0800, TWO.gpa, paging="two-level")) == Touched(identity(1, 0))


def test_reserved_bits_of_a_page_of_4_mib_are_not_known() -> None:
    made = _above(0x00A0_2000 | USED | LARGE)
    assert made.allowed(Start(0x80_0800, TWO.gpa, paging="two-level")) == ()


def test_an_address_that_is_not_mapped_stops_it() -> None:
    made = model(replace(TWO, bits=USED))
    assert outcome(made, Start(0x40_0800, TWO.gpa, paging="two-level")) == Stopped("shutdown")


def test_a_program_of_64_bit_mode_is_another_one_there() -> None:
    made = model(TWO)
    for operation in writes(Place("a", 4 * PAGE_SIZE_BYTES + 0x900), copy(0x2040)):
        outcome(made, operation)
    start = TWO.access(0, 2)
    assert made.allowed(start) == ()
    assert "32-bit mode" in made.why_unknown(start)
