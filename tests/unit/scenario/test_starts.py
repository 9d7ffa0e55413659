"""Starts, and scenarios without a guest's slot: what is safe to run, and what is carried out."""

import msgspec
import pytest

from vmm.scenario.codec import parse_scenario, scenario_text
from vmm.scenario.operations import (
    NO_SLOT,
    AnyOperation,
    Execute,
    Guest,
    HostWrite,
    Instruction,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Start,
    Sweep,
    Touch,
)
from vmm.scenario.pagetables import Tables
from vmm.scenario.plan import out_of_reach, steps
from vmm.scenario.problem import ScenarioError
from vmm.scenario.programs import writes
from vmm.scenario.validate import validate

BARE = Scenario("bare", (), guest=Guest(slot=NO_SLOT), survey="none")


def with_operations(base: Scenario, *operations: AnyOperation) -> Scenario:
    return msgspec.structs.replace(base, operations=operations)


@pytest.mark.parametrize(
    ("start", "field"),
    [
        (Start(0x800, 0x1001), "tables"),
        (Start(0x800, 1 << 52), "tables"),
        (Start(1 << 47, 0), "address"),
        (Start(0x800, 0, 1 << 47), "data"),
        (Start(0x800, 0, 0, 1 << 32), "value"),
        (Start(1 << 32), "address"),
        (Start(0x800, None, 0x1000), "tables"),
        (Start(0x800, vcpu=1), "vcpu"),
        (Start(0x800, stack=0x1000), "stack"),
        (Start(0x800, stack=39, interrupts=0), "stack"),
        (Start(0x800, stack=0x10000, interrupts=0), "stack"),
        (Start(0x800, stack=0x1000, interrupts=1 << 32), "interrupts"),
        (Start(0x800, 0, stack=0x1000, interrupts=1 << 47), "interrupts"),
        (Start(0x800, paging="pae"), "paging"),
        (Start(0x800, 0, stack=0x1000, interrupts=0, paging="two-level"), "paging"),
        (Start(0x800, 0x1010, paging="pae"), "tables"),
        (Start(0x800, 0x1020, paging="two-level"), "tables"),
        (Start(0x800, 1 << 32, paging="pae"), "tables"),
        (Start(1 << 32, 0, paging="two-level"), "address"),
        (Start(0x800, 0, 1 << 32, paging="pae"), "data"),
    ],
)
def test_a_start_that_cannot_be_is_named_by_its_field(start: Start, field: str) -> None:
    with pytest.raises(ScenarioError, match=rf"\$\.operations\[0\]\.{field}: "):
        validate(Scenario("start", (start,)))


@pytest.mark.parametrize(
    ("start", "needs"),
    [
        (Start(0x800, smi=True), ()),
        (Start(0x800, 0, smi=True), ("smm",)),
        (Start(0x800, smi=True, as_id=1), ("smm",)),
    ],
)
def test_an_smi_takes_smm_and_real_mode_and_a_vcpu_outside(
    start: Start, needs: tuple[str, ...]
) -> None:
    with pytest.raises(ScenarioError, match=r"\$\.operations\[0\]\.smi: "):
        validate(Scenario("start", (start,), needs=needs))


@pytest.mark.parametrize(
    "start",
    [
        Start(0x800, smbase=0x40000),
        *(Start(0x800, smi=True, smbase=each) for each in (0x40001, -0x10, 0xFFFF_0010, 1 << 32)),
    ],
)
def test_an_smbase_that_cannot_be_is_named(start: Start) -> None:
    with pytest.raises(ScenarioError, match=r"\$\.operations\[0\]\.smbase: "):
        validate(Scenario("start", (start,), needs=("smm",)))
    last = Start(0x800, smi=True, smbase=0xFFFF_0000)
    validate(Scenario("start", (last,), needs=("smm",)))


def test_a_start_in_smm_takes_smm() -> None:
    start = Start(0x800, 0, as_id=1)
    with pytest.raises(ScenarioError, match=r"\$\.operations\[0\]\.as_id: "):
        validate(Scenario("start", (start,)))
    validate(Scenario("start", (start,), needs=("smm",)))


def test_a_start_reads_as_it_was_written() -> None:
    interrupt = Start(0x900, stack=0x1400, interrupts=0)
    starts = (
        *(Start(0x800, 0x1000, 0x2040, 7), Start(0xFFFF_FFF0), Start(0x800, smi=True), interrupt),
        *(
            Start(0x800, 0x1020, paging="pae"),
            Start(0x800, 0x1000, as_id=1),
            Start(0x800, smi=True, smbase=0x40010),
        ),
    )
    scenario = Scenario("start", starts, needs=("smm",))
    assert (
        parse_scenario(scenario_text(scenario).encode(), "file").operations == scenario.operations
    )


def test_a_start_takes_no_memory_that_is_filled_where_it_is_reached() -> None:
    with pytest.raises(ScenarioError, match=r"operations\[0\]: it takes no mapping of more than"):
        validate(Scenario("start", (Start(0x800),), (Mapping("a", 1 << 15),)))


def test_a_start_with_tables_takes_guests_in_64_bit_mode() -> None:
    scenario = Scenario("start", (Start(0x800, 0x1000),))
    assert out_of_reach(scenario, 1 << 32) == "guests in 64-bit mode"
    assert out_of_reach(with_operations(scenario, Start(0x800)), 1 << 32) == ""


@pytest.mark.parametrize(
    "operation",
    [Touch(0x1000), Sweep(0x1000, 1), Instruction("xchg", 0x1000), Execute(1 << 32)],
)
def test_without_a_guest_nothing_takes_one(operation: AnyOperation) -> None:
    with pytest.raises(ScenarioError, match=r"\$\.operations\[0\]: .* lives somewhere"):
        validate(with_operations(BARE, operation))


def test_without_a_guest_there_is_no_survey() -> None:
    with pytest.raises(ScenarioError, match=r"\$\.survey"):
        validate(msgspec.structs.replace(BARE, survey="read"))


def test_without_a_guest_no_slot_is_made_and_none_is_in_the_way() -> None:
    scenario = with_operations(
        BARE,
        SetUserMemoryRegion(400, 0xFFFF_0000, 0x1000, Place("a")),
        Execute(0xFFFF_0000),
        Start(0x800, 0),
    )
    scenario = msgspec.structs.replace(scenario, mappings=(Mapping("a", 1),))
    validate(scenario)
    regions = [
        step.operation
        for step in steps(scenario, 1 << 40)
        if isinstance(step.operation, SetUserMemoryRegion)
    ]
    assert regions == [scenario.operations[0]]
    assert parse_scenario(scenario_text(scenario).encode(), "file").guest == scenario.guest


def test_page_tables_are_written_to_zeros_entry_by_entry() -> None:
    tables = Tables("a", 0x10_0000, (0x104,), bits=3)
    written = [op for op in tables.lay() if isinstance(op, HostWrite)]
    words = {op.place.offset: op.value for op in written}
    assert words == {
        0: 0x1003, 4: 1, 0x1000: 0x2003, 0x1004: 1, 0x2000: 0x3003, 0x2004: 1, 0x3000: 0x104003,
    }  # fmt: skip


def test_a_program_is_written_as_words() -> None:
    place = Place("a", 0x900)
    assert list(writes(place, bytes(range(1, 7)))) == [
        HostWrite(place, 0x04030201),
        HostWrite(Place("a", 0x904), 0x0605),
    ]
